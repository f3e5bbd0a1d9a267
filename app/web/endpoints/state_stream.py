"""One state after each change, as server-sent events."""

from __future__ import annotations

__all__ = ["PING_SECONDS", "REREAD_SECONDS", "STREAMS_MAX", "Streams", "stream_state"]

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import orjson
from aiohttp import hdrs, web
from aiohttp_sse import EventSourceResponse
from attrs import define, field
from loguru import logger

from app.runtime.service import ModuleService
from app.storage.errors import StorageUnavailable
from app.web.handler import SERVER, Handle, RequestContext
from app.web.problems import X_CORRELATION_ID, ProblemError
from app.web.requests.parsing import parameters
from modules.routes import StreamRoute

REREAD_SECONDS = 5.0
"""Longest time until a change is seen that another process made: nobody wakes us for those."""

PING_SECONDS = 15.0
STREAMS_MAX = 1000
"""Most streams at once; each reads its state every `REREAD_SECONDS`."""

_NOT_FOUND = partial(ProblemError, 404, "not_found", "There is nothing here under this id.")
_TOO_MANY = partial(ProblemError, 503, "overloaded", "There are too many streams already.", headers={hdrs.RETRY_AFTER: "5"})


@define(eq=False)
class Streams:
    """All streams of one application, and the word that ends them."""

    reread_seconds: float = REREAD_SECONDS
    open: int = 0
    _end: asyncio.Future[None] | None = field(default=None, init=False)

    @property
    def end(self) -> asyncio.Future[None]:
        """Done once the server is going down."""
        if self._end is None:
            self._end = asyncio.get_running_loop().create_future()
        return self._end

    def close(self) -> None:
        """End every stream, and each that is asked for from now on."""
        if not self.end.done():
            self.end.set_result(None)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """
        Count one stream for as long as it lasts.

        Raises:
            Refused: There are too many.
        """
        if self.open >= STREAMS_MAX:
            raise _TOO_MANY()
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1


def stream_state(service: ModuleService, route: StreamRoute, streams: Streams) -> Handle:
    """Return what answers *route*: the present state at once, then each change, until it is over."""

    async def handle(request: web.Request, asked: RequestContext) -> web.StreamResponse:
        path = parameters(request)
        if path is None:
            raise _NOT_FOUND()
        (key,) = path.values()
        # Entered before the first read, so that no change falls between the two.
        with streams.slot():
            async with service.watch(route.state, key) as changes:
                state = await service.get(route.state, key)
                if state is None or route.show(state) is None:
                    raise _NOT_FOUND()
                response = EventSourceResponse(
                    headers={X_CORRELATION_ID: asked.correlation_id, hdrs.SERVER: SERVER}, ping_interval=PING_SECONDS
                )
                asked.record(response.status)
                asked.is_recorded = True
                if request.method == hdrs.METH_HEAD:
                    return web.Response(headers=response.headers)
                await response.prepare(request)
                async with response:
                    try:
                        await _send_all(service, route, key, state, changes, streams, request, response)
                    except (ConnectionError, TimeoutError):
                        pass  # the listener has gone, or has stopped reading
                    except Exception as error:  # the head is out: all we can do is end, and the listener asks again
                        logger.opt(exception=error).error(
                            "stream failed", route=route.path, correlation_id=asked.correlation_id
                        )
                return response

    return handle


async def _send_all(
    service: ModuleService,
    route: StreamRoute,
    key: str,
    state: Any,
    changes: AsyncIterator[None],
    streams: Streams,
    request: web.Request,
    response: EventSourceResponse,
) -> None:
    """Send *state* and what becomes of it, until it is over, the listener has gone or the server goes down."""
    sent, count = b"", 0
    change = asyncio.create_task(_next(changes))
    waiting: set[asyncio.Future[Any]] = {change, streams.end}
    try:
        while True:
            shown = route.show(state)
            if shown is None:
                return
            data = orjson.dumps(shown)
            if data != sent:
                sent, count = data, count + 1
                await response.send(data.decode(), id=str(shown.get("updated_at", count)), event=route.response_schema)
            if route.is_finished(state):
                return
            # The pending step is kept over a time-out: to cancel it could end the iterator.
            await asyncio.wait(waiting, timeout=streams.reread_seconds, return_when=asyncio.FIRST_COMPLETED)
            if streams.end.done() or request.transport is None or request.transport.is_closing():
                return
            if change.done():
                if not change.result():
                    return
                change = asyncio.create_task(_next(changes))
                waiting = {change, streams.end}
            with suppress(StorageUnavailable):  # the database will be back; until then there is nothing new to say
                state = await service.get(route.state, key)
                if state is None:
                    return
    finally:
        change.cancel()
        await asyncio.wait({change})
        if not change.cancelled():
            change.exception()  # looked at, so that nobody complains that it never was


async def _next(changes: AsyncIterator[None]) -> bool:
    """Wait for a change; false when there will be none any more."""
    try:
        await anext(changes)
    except StopAsyncIteration:
        return False
    return True
