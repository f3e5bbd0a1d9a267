"""
Make the spans of a trace, each when it has ended.

    POST /v1/orders                               server     the id is in the header of what the request submits
      process OrderSubmitted                      internal   one for each event and module that decides about it
        publish orders.created.v2                 producer   the id is in the event's header
          process orders.created.v2 (inventory)   consumer
            publish inventory.reserved.v1         producer
              ...
                process payments.charge_requested.v1 (payments-gateway)
                  charge stripe                   client     one for each call to the provider

A transaction about a batch has a span in a trace of its own, linked with the spans of what it decided about. Names and
attributes are those of OpenTelemetry's semantic conventions 1.37 for HTTP, messaging and databases; ours begin with
``fulfilment.``. No attribute has a body, a header, a query, or data of a customer.
"""

from __future__ import annotations

__all__ = ["ServerSpan", "Tracer"]

import time
from asyncio import CancelledError, Future
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from random import getrandbits, randbytes
from typing import Any

from attrs import define
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from app.telemetry.otel.sampling import SAMPLED_DIGITS, Sampler, is_sampled
from app.telemetry.otel.span_ids import process_span_id
from app.telemetry.trace import TraceContext, traceparent
from bus.contracts.versions import version_of, versions_in
from bus.subjects import original_subject, without_lane

LINKS_MAX = 128
"""Links of one span, as the specification limits them by default."""

Attributes = dict[str, Any]

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_OK = Status(StatusCode.UNSET)
_ERROR = Status(StatusCode.ERROR)


@define
class ServerSpan:
    """A request that is being answered: its place in the trace, as the header *traceparent* of what follows from it."""

    traceparent: str
    parent_id: str | None
    """The caller's span; None if the trace begins here."""
    started_at: int
    """In nanoseconds since 1970."""
    error: Exception | None = None


class Tracer:
    """Makes spans, and passes each to *on_end*, which must not block."""

    def __init__(
        self, on_end: Callable[[ReadableSpan], None], sampler: Sampler, resource: Resource, version: str, messaging_system: str
    ) -> None:
        self._on_end = on_end
        self._sampler = sampler
        self._resource = resource
        self._scope = InstrumentationScope("fulfilment", version)
        self._system = messaging_system
        self._current: ContextVar[tuple[str, str] | None] = ContextVar("span of the request in hand", default=None)
        """The trace id and the span id of the request for the provider that the task processes; None if it is not sampled."""

    # HTTP

    def begin_request(self, header: str | None) -> ServerSpan:
        """Return the span of a request with *header* (``traceparent``), which it continues if that is valid."""
        own = traceparent(header, randbytes)
        is_continued = header is not None and header[3:35] == own[3:35]
        decided = self._sampler.decide(own, is_continued=is_continued)
        return ServerSpan(decided, header[36:52] if is_continued and header else None, time.time_ns())

    def end_request(self, span: ServerSpan, method: str, route: str, scheme: str, path: str, status: int) -> None:
        """End the span of a request for *route*, the template of *path*, which was answered with *status*."""
        if not is_sampled(span.traceparent):
            return
        attributes: Attributes = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "url.scheme": scheme,
            "url.path": path,
        }
        error = None
        if status >= 500:
            error = str(status) if span.error is None else type(span.error).__qualname__
        self._emit(
            f"{method} {route}", SpanKind.SERVER, span.traceparent[3:35], span.traceparent[36:52], span.parent_id,
            span.started_at, time.time_ns(), attributes, error,
        )  # fmt: skip

    # Transactions

    def end_transactions(self, commits: Iterable[Mapping[str, Any]], seconds: float, database: str) -> None:
        """
        Make the spans of *commits*, which took *seconds* altogether, in a database of the system *database*.

        A commit is an `app.runtime.engine.CommitResult`.
        """
        for commit in commits:
            sampled = [
                (module, item, result)
                for module, part in commit.items()
                for item, result in zip(part.items, part.results, strict=True)
                if item.origin_trace.traceparent[54] in SAMPLED_DIGITS
            ]
            if sampled:
                self._end_transaction(commit, sampled, seconds, database)

    def _end_transaction(
        self, commit: Mapping[str, Any], sampled: Sequence[tuple[str, Any, Any]], seconds: float, database: str
    ) -> None:
        end = time.time_ns()
        start = end - round(seconds * 1e9)
        trace_id, span_id = f"{getrandbits(128) or 1:032x}", _random_id()
        batch = [Link(_context(trace_id, span_id))]
        published: set[str] = set()
        links: list[Link] = []
        for module, item, result in sampled:
            trace: str = item.origin_trace.traceparent[3:35]
            cause = item.cause
            if cause is not None and cause.is_delivered_locally and cause.id not in published:
                published.add(cause.id)
                self._emit_publish(
                    trace, cause.traceparent[36:52], process_span_id(cause.cause.id, cause.producer), start, end,
                    without_lane(item.subject), cause.id, item.origin_trace.correlation_id,
                )  # fmt: skip
            id = process_span_id(item.id, module) if result.decision is not None else _random_id()
            self._emit_process(trace, id, item, result, module, start, end, batch)
            if len(links) < LINKS_MAX:
                links.append(Link(_context(trace, id)))
        count = sum(len(part.items) for part in commit.values())
        attributes: Attributes = {"db.system.name": database, "fulfilment.modules": tuple(commit)}
        if count > 1:
            attributes["db.operation.batch.size"] = count
        errors = [type(result.error).__qualname__ for _, _, result in sampled if result.error is not None]
        is_failed = len(errors) == count
        self._emit(
            f"transaction {next(iter(commit))}", SpanKind.CLIENT, trace_id, span_id, None, start, end, attributes,
            errors[0] if is_failed else None, links,
        )  # fmt: skip

    def _emit_process(
        self, trace: str, id: str, item: Any, result: Any, module: str, start: int, end: int, links: Sequence[Link]
    ) -> None:
        error = None if result.error is None else type(result.error).__qualname__
        outcome = "failed" if error else "repeated" if result.decision is None else "handled"
        attributes: Attributes = {"fulfilment.outcome": outcome}
        if order_id := getattr(item.event, "order_id", None):
            attributes["fulfilment.order_id"] = order_id
        subject = without_lane(item.subject)
        if subject:
            attributes |= self._message(subject, item.id, "process", item.origin_trace.correlation_id)
            attributes["messaging.consumer.group.name"] = module
        name, kind = subject or type(item.event).__name__, SpanKind.CONSUMER if subject else SpanKind.INTERNAL
        self._emit(f"process {name}", kind, trace, id, item.traceparent[36:52], start, end, attributes, error, links)

    # Messages

    def publish(self, row: Any, published: Future[Any]) -> None:
        """
        Make the span of a message once *published* is done; nothing if it is published again later.

        *row* is its `app.storage.tables.OutboxMessage`.
        """
        if row.traceparent[54] in SAMPLED_DIGITS:
            published.add_done_callback(partial(self._on_published, row, time.time_ns()))

    def _on_published(self, row: Any, start: int, published: Future[Any]) -> None:
        if published.cancelled() or published.exception() is not None or published.result() is False:
            return
        subject = without_lane(original_subject(row.subject))
        # An event that is published in two versions is two messages with one header; the newest has the header's span.
        is_newest = row.versions is None or version_of(subject)[1] == max(versions_in(row.versions))
        id = row.traceparent[36:52] if is_newest else _random_id()
        parent = process_span_id(row.causation_id, subject.partition(".")[0])
        self._emit_publish(
            row.traceparent[3:35], id, parent, start, time.time_ns(), subject, row.id, row.correlation_id
        )

    def _emit_publish(
        self, trace: str, id: str, parent: str, start: int, end: int, subject: str, message_id: str, correlation_id: str
    ) -> None:
        attributes = self._message(subject, message_id, "publish", correlation_id)
        attributes["messaging.operation.type"] = "send"
        self._emit(f"publish {subject}", SpanKind.PRODUCER, trace, id, parent, start, end, attributes)

    def _message(self, subject: str, id: str, operation: str, correlation_id: str) -> Attributes:
        return {
            "messaging.system": self._system,
            "messaging.destination.name": subject,
            "messaging.message.id": id,
            "messaging.message.conversation_id": correlation_id,
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
        }

    # Calls to a provider

    @contextmanager
    def processing(self, consumer: str, subject: str, id: str, trace: TraceContext) -> Iterator[None]:
        """Make a span of what happens within, for the message *id*; the calls of `traced` objects become its children."""
        header = trace.traceparent
        if not is_sampled(header):
            self._current.set(None)
            yield
            return
        start, span_id, error = time.time_ns(), _random_id(), None
        self._current.set((header[3:35], span_id))
        try:
            yield
        except (Exception, CancelledError) as raised:
            error = type(raised).__qualname__
            raise
        finally:
            self._current.set(None)
            attributes = self._message(subject, id, "process", trace.correlation_id)
            attributes["messaging.consumer.group.name"] = consumer
            self._emit(
                f"process {subject}", SpanKind.CONSUMER, header[3:35], span_id, header[36:52], start, time.time_ns(),
                attributes, error,
            )  # fmt: skip

    def traced(self, provider: Any, name: str, methods: Sequence[str]) -> Any:
        """Return *provider*, called *name*, whose coroutine *methods* each make a client span within `processing`."""
        return _Traced(provider, frozenset(methods), partial(self._call, name))

    async def _call(self, provider: str, operation: str, call: Callable[..., Any], *arguments: Any) -> Any:
        current = self._current.get()
        if current is None:
            return await call(*arguments)
        (trace, parent), start, error = current, time.time_ns(), None
        try:
            return await call(*arguments)
        except (Exception, CancelledError) as raised:
            error = type(raised).__qualname__
            raise
        finally:
            attributes: Attributes = {"fulfilment.gateway.name": provider, "fulfilment.gateway.operation": operation}
            self._emit(
                f"{operation} {provider}", SpanKind.CLIENT, trace, _random_id(), parent, start, time.time_ns(), attributes, error
            )

    def _emit(
        self,
        name: str,
        kind: SpanKind,
        trace_id: str,
        span_id: str,
        parent_id: str | None,
        start: int,
        end: int,
        attributes: Attributes,
        error: str | None = None,
        links: Sequence[Link] = (),
    ) -> None:
        if error is not None:
            attributes["error.type"] = error
        self._on_end(
            ReadableSpan(
                name,
                _context(trace_id, span_id),
                None if parent_id is None else _context(trace_id, parent_id),
                self._resource,
                attributes,
                links=links,
                kind=kind,
                status=_OK if error is None else _ERROR,
                start_time=start,
                end_time=max(start, end),
                instrumentation_scope=self._scope,
            )
        )


class _Traced:
    """An object some of whose methods are called through *call*."""

    def __init__(self, wrapped: Any, methods: frozenset[str], call: Callable[..., Any]) -> None:
        self._wrapped = wrapped
        self._methods = methods
        self._call = call

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._wrapped, name)
        return partial(self._call, name, found) if name in self._methods else found


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=_SAMPLED)


def _random_id() -> str:
    return f"{getrandbits(64) or 1:016x}"
