"""One state as server-sent events: its present value, then each change."""

from __future__ import annotations

__all__ = ["PING_SECONDS", "POLL_SECONDS", "STREAMS_MAX", "StateStream", "Streams", "event_id", "stream_state"]

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import blake2b
from typing import Any

import orjson
from aiohttp import hdrs, web
from aiohttp_sse import EventSourceResponse
from attrs import define, field
from loguru import logger

from app.runtime.service import ModuleService
from app.storage.errors import StorageUnavailable
from app.web.access.authentication import ANONYMOUS
from app.web.access.limits import STREAMS_PER_KEY_MAX, LimitLog
from app.web.access.ownership import is_foreign
from app.web.handler import SERVER, EndpointHandler, RequestContext
from app.web.requests.parameters import path_parameters
from app.web.responses.problems import X_CORRELATION_ID, ProblemError
from app.web.responses.success import UNCACHED
from app.web.streams.feed import LOOK_SECONDS
from modules.routes import StreamRoute

POLL_SECONDS = 5.0
"""Interval at which a stream reads its state again. A change by another process wakes no stream here, so this is the
longest time until the stream sends it."""

PING_SECONDS = 15.0
LAST_EVENT_ID = "Last-Event-ID"
STREAMS_MAX = 1000
"""Most streams that are open at once; each reads its state every `POLL_SECONDS`."""

_NOT_FOUND = partial(ProblemError, 404, "not_found", "No resource has this id.")
_TOO_MANY = partial(ProblemError, 503, "overloaded", "Too many streams are open.", headers={hdrs.RETRY_AFTER: "5"})
_TOO_MANY_OF_ONE = partial(
    ProblemError, 429, "too_many_requests", "Too many streams are open with this key.", headers={hdrs.RETRY_AFTER: "5"}
)


@define(eq=False)
class Streams:
    """The open streams of one application: their number, their polling interval, and the signal that ends them."""

    poll_seconds: float = POLL_SECONDS
    looks_every_seconds: float = LOOK_SECONDS
    """Interval at which a process looks for changed states, for all streams of many states together."""
    open_count: int = 0
    _by_caller: Counter[str] = field(factory=Counter, init=False)
    _log: LimitLog = field(factory=LimitLog, init=False)
    _closed: asyncio.Future[None] | None = field(default=None, init=False)

    @property
    def closed(self) -> asyncio.Future[None]:
        """Done once the server is shutting down."""
        if self._closed is None:
            self._closed = asyncio.get_running_loop().create_future()
        return self._closed

    def close(self) -> None:
        """End every open stream, and every later one at once."""
        if not self.closed.done():
            self.closed.set_result(None)

    @contextmanager
    def slot(self, caller: str) -> Iterator[None]:
        """
        Count one open stream of *caller* for as long as the context lasts.

        Raises:
            ProblemError: 503, `STREAMS_MAX` streams are open; 429, `STREAMS_PER_KEY_MAX` are open with this API key.
        """
        if self.open_count >= STREAMS_MAX:
            self._log.report("open streams", STREAMS_MAX)
            raise _TOO_MANY()
        if caller != ANONYMOUS.name and self._by_caller[caller] >= STREAMS_PER_KEY_MAX:
            self._log.report("open streams of one key", STREAMS_PER_KEY_MAX, caller=caller)
            raise _TOO_MANY_OF_ONE()
        self.open_count += 1
        self._by_caller[caller] += 1
        try:
            yield
        finally:
            self.open_count -= 1
            self._by_caller[caller] -= 1
            if not self._by_caller[caller]:
                del self._by_caller[caller]


def stream_state(service: ModuleService, route: StreamRoute, streams: Streams) -> EndpointHandler:
    """Return the handler of *route*: it sends the present state at once, then each change, until a final state."""

    async def handle(request: web.Request, context: RequestContext) -> web.StreamResponse:
        path = path_parameters(request)
        if path is None:
            raise _NOT_FOUND()
        (key,) = path.values()
        # The watch begins before the first read, so that no change between the two is lost.
        with streams.slot(context.caller):
            async with service.watch(route.state, key) as changes:
                state = await service.get(route.state, key)
                if state is None or is_foreign(state, context.customer) or route.show(state) is None:
                    raise _NOT_FOUND()
                if route.is_finished(state) and request.headers.get(LAST_EVENT_ID) == event_id(route.show(state)):
                    # The client has the final state; 204 ends the reconnects of an EventSource (HTML, 9.2.3).
                    return web.Response(status=204, headers=UNCACHED)
                response = EventSourceResponse(
                    headers={X_CORRELATION_ID: context.correlation_id, hdrs.SERVER: SERVER}, ping_interval=PING_SECONDS
                )
                response.headers.update(UNCACHED)  # aiohttp-sse sets a Cache-Control of its own
                context.record_now(response.status)
                if request.method == hdrs.METH_HEAD:
                    return web.Response(headers=response.headers)
                await response.prepare(request)
                async with response:
                    try:
                        await StateStream(service, route, key, changes, streams, request, response).send_all(state)
                    except (ConnectionError, TimeoutError):
                        pass  # the client has disconnected, or has stopped reading
                    except Exception as error:  # the headers are sent, so the stream can only end; clients reconnect
                        logger.opt(exception=error).error(
                            "stream failed", route=route.path, correlation_id=context.correlation_id
                        )
                return response

    return handle


class StateStream:
    """Sends one state over one connection, as long as it can change and the client reads."""

    def __init__(
        self,
        service: ModuleService,
        route: StreamRoute,
        key: str,
        changes: AsyncIterator[None],
        streams: Streams,
        request: web.Request,
        response: EventSourceResponse,
    ) -> None:
        self._service = service
        self._route = route
        self._key = key
        self._changes = changes
        self._streams = streams
        self._request = request
        self._response = response
        self._sent = b""
        self._next_change: asyncio.Task[bool]

    async def send_all(self, state: Any) -> None:
        """Send *state* and each change of it until it is final or not visible, or the client or the server goes."""
        self._next_change = asyncio.create_task(_next(self._changes))
        try:
            while await self._send_if_changed(state) and await self._wait():
                state = await self._reload(state)
        finally:
            self._next_change.cancel()
            await asyncio.wait({self._next_change})
            if not self._next_change.cancelled():
                self._next_change.exception()  # asyncio warns about an exception that is never retrieved

    async def _send_if_changed(self, state: Any | None) -> bool:
        """Send *state* unless it was the last one sent; return whether another one can follow."""
        shown = None if state is None else self._route.show(state)
        if shown is None:
            return False
        data = orjson.dumps(shown)
        if data != self._sent:
            self._sent = data
            id = event_id(shown)
            await self._response.send(data.decode(), id=id, event=self._route.event_name)
        return not self._route.is_finished(state)

    async def _wait(self) -> bool:
        """Wait for a change or the polling interval; return False if the client, the server or the watch has ended."""
        closed = self._streams.closed
        waiting: set[asyncio.Future[Any]] = {self._next_change, closed}
        # The task survives a time-out: cancelling it could end the iterator.
        await asyncio.wait(waiting, timeout=self._streams.poll_seconds, return_when=asyncio.FIRST_COMPLETED)
        if closed.done() or self._request.transport is None or self._request.transport.is_closing():
            return False
        if self._next_change.done():
            if not self._next_change.result():
                return False
            self._next_change = asyncio.create_task(_next(self._changes))
        return True

    async def _reload(self, state: Any) -> Any | None:
        """Return the present state, or *state* while the database is unavailable."""
        with suppress(StorageUnavailable):
            return await self._service.get(self._route.state, self._key)
        return state


def event_id(shown: Any) -> str:
    """Return the id of the event that carries the state *shown*: when it changed, or a hash of it if it has no such time."""
    return str(shown.get("updated_at") or blake2b(orjson.dumps(shown), digest_size=8).hexdigest())


async def _next(changes: AsyncIterator[None]) -> bool:
    """Wait for the next change; return False when no further one can come."""
    try:
        await anext(changes)
    except StopAsyncIteration:
        return False
    return True
