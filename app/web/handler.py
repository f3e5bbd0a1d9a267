"""
What surrounds every handler: who asks, what went wrong, and the numbers.

A wrapper made once for each route takes the place of aiohttp's middlewares, which cost every request several
microseconds; whatever can be known beforehand is bound here.
"""

from __future__ import annotations

__all__ = ["SERVER", "Counts", "Endpoint", "Handle", "HandlerDeps", "RequestContext", "Seconds", "Telemetry", "build_handler"]

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, Protocol

from aiohttp import hdrs, web
from attrs import define, frozen
from loguru import logger
from uuid_utils import uuid7

from app.runtime.errors import IdempotencyKeyReused
from app.storage.errors import CommitOutcomeUnknown, TemporarilyUnavailable
from app.telemetry.logs import enabled
from app.telemetry.trace import correlation_id
from app.web.auth import ANONYMOUS, caller_of
from app.web.problems import X_CORRELATION_ID, ProblemError, respond

SERVER = "fulfilment"
"""What we say that we are; a version would only tell an attacker what to try."""


class Counts(Protocol):
    """A family of counters."""

    def labels(self, method: str, route: str, status: str, /) -> Any:
        """Return the child with ``inc()``."""


class Seconds(Protocol):
    """A family of histograms."""

    def labels(self, route: str, /) -> Any:
        """Return the child with ``observe(seconds)``."""


class Telemetry(Protocol):
    """The numbers that the web fills and shows."""

    @property
    def http_requests(self) -> Counts:
        """By method, route template and status."""

    @property
    def http_request_seconds(self) -> Seconds:
        """By route template."""

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""


@define
class RequestContext:
    """One request, as far as its surroundings know it."""

    correlation_id: str
    caller: str
    record: Callable[[int], None]
    """Count the answer's status now. For a handler whose answer takes long; the others are counted at their end."""
    is_recorded: bool = False


Handle = Callable[[web.Request, RequestContext], Awaitable[web.StreamResponse]]


@frozen
class Endpoint:
    """One method on one path template, and who answers."""

    method: str
    path: str
    handle: Handle
    is_open: bool = False
    """True where no key is asked for."""
    is_probe: bool = False
    """True where a 503 is an answer like any other, and no error to be logged."""


@frozen
class HandlerDeps:
    """What every wrapper needs."""

    telemetry: Telemetry
    keys: Mapping[str, str] | None
    """Callers' names, each with the SHA-256 of its key; None where nobody is asked."""


def build_handler(operation: Endpoint, around: HandlerDeps) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """
    Return the aiohttp handler for *operation*.

    It answers everything: what *handle* raises becomes a problem, and only a cancellation gets through.
    """
    method, route, handle = operation.method, operation.path, operation.handle
    keys = None if operation.is_open else around.keys
    counts, seconds = around.telemetry.http_requests, around.telemetry.http_request_seconds
    children: dict[int, Any] = {}
    spent = None

    def record(status: int, started: float, actual_method: str) -> None:
        nonlocal spent
        if method == hdrs.METH_ANY:  # the catch-all: any method comes here, and the family itself bounds their number
            counts.labels(actual_method, route, str(status)).inc()
        else:
            child = children.get(status)
            if child is None:
                child = children[status] = counts.labels(method, route, str(status))
            child.inc()
        if spent is None:
            spent = seconds.labels(route)
        spent.observe(perf_counter() - started)

    async def answer(request: web.Request) -> web.StreamResponse:
        started = perf_counter()
        correlation = correlation_id(request.headers.get(X_CORRELATION_ID), _fresh)
        asked = RequestContext(correlation, ANONYMOUS, lambda status: record(status, started, request.method))
        is_shed = False
        response: web.StreamResponse
        try:
            if keys is not None:
                asked.caller = caller_of(request.headers.get(hdrs.AUTHORIZATION), keys)
            response = await handle(request, asked)
        except ProblemError as refused:
            response = respond(refused, request.rel_url.raw_path, correlation)
        except IdempotencyKeyReused:
            response = respond(_key_reused(), request.rel_url.raw_path, correlation)
        except TemporarilyUnavailable as shed:
            is_shed = not isinstance(shed, CommitOutcomeUnknown)
            response = respond(_shed(shed), request.rel_url.raw_path, correlation)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever it is, the caller hears that it is ours, and nothing else
            logger.opt(exception=error).error(
                "request failed", method=request.method, route=route, correlation_id=correlation
            )
            response = respond(_failed(), request.rel_url.raw_path, correlation)
        status = response.status
        if not response.prepared:
            response.headers[X_CORRELATION_ID] = correlation
            response.headers[hdrs.SERVER] = SERVER
        if not asked.is_recorded:
            record(status, started, request.method)
        # Whoever sheds has said so, once; a line for each that is refused would make it dearer just when it is too much.
        if status > 500 and not operation.is_probe and not is_shed:
            logger.error(
                "request refused", method=request.method, route=route, status=status, correlation_id=correlation
            )
        if enabled("DEBUG"):
            logger.debug(
                "request answered",
                method=request.method,
                route=route,
                status=status,
                seconds=round(perf_counter() - started, 6),
                correlation_id=correlation,
                caller=asked.caller,
            )
        return response

    return answer


def _fresh() -> str:
    return str(uuid7())


def _key_reused() -> ProblemError:
    return ProblemError(422, IdempotencyKeyReused.code, "This Idempotency-Key was used before, for another body.")


def _shed(shed: TemporarilyUnavailable) -> ProblemError:
    return ProblemError(
        503,
        shed.code,
        _SHED.get(shed.code, "This cannot be taken now; nothing was stored. Come again later."),
        headers={hdrs.RETRY_AFTER: str(max(1, int(shed.retry_after_seconds)))},
    )


# Not the exception's own sentence: whoever raises it may have put a host or a path into it.
_SHED = {
    "overloaded": "There is too much waiting already; nothing was stored. Come again later.",
    "outcome_unknown": (
        "The database went out of reach in the middle of it, and it is not known whether this was stored."
        " Send it again with the same Idempotency-Key, or look before you send it again."
    ),
    "database_unavailable": "The database is out of reach; nothing was stored. Come again later.",
}


def _failed() -> ProblemError:
    return ProblemError(500, "internal_error", "Something went wrong on our side. The correlation id names it in our log.")
