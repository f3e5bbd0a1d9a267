"""All states of one class, or those that filters select, as server-sent events: each after each change."""

from __future__ import annotations

__all__ = ["stream_list"]

import asyncio
import re
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from datetime import UTC, datetime
from functools import partial

from aiohttp import hdrs, web
from aiohttp_sse import EventSourceResponse
from loguru import logger

from app.runtime.service import ModuleService
from app.storage.errors import StorageUnavailable
from app.web.access.ownership import owned_only
from app.web.access.stream_tokens import TOKEN
from app.web.handler import SERVER, EndpointHandler, RequestContext
from app.web.requests.filters import FilterReader
from app.web.requests.parameters import read_query
from app.web.responses.problems import X_CORRELATION_ID, ProblemError
from app.web.responses.success import UNCACHED
from app.web.streams.feed import LOAD_MAX, Feed, FeedRun, Look
from app.web.streams.state_stream import LAST_EVENT_ID, PING_SECONDS, Streams
from modules.filters import Condition
from modules.routes import ListStreamRoute
from modules.values import rfc3339

SEND_SECONDS_MAX = 30.0
"""How long a client may leave what was sent to it unread; then its connection ends."""

_ID = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?Z)(?:~([0-9a-f]{8}))?", re.ASCII)
_INVALID_ID = partial(
    ProblemError, 400, "invalid_last_event_id", "Last-Event-ID must be the id of an event of this stream, or a time in UTC."
)
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


def stream_list(service: ModuleService, route: ListStreamRoute, streams: Streams) -> EndpointHandler:
    """Return the handler of *route*: it sends what changes from now on, or from the event that ``Last-Event-ID`` names."""
    filters = FilterReader(route.filters)
    known = {*filters.names, TOKEN}
    feed = Feed(service, route.state, route.show)

    async def handle(request: web.Request, context: RequestContext) -> web.StreamResponse:
        query = read_query(request, known)
        query.pop(TOKEN, None)
        conditions = filters.read(owned_only(query, context.customer))
        resumes_at = _read_id(request.headers.get(LAST_EVENT_ID))
        response = EventSourceResponse(
            headers={X_CORRELATION_ID: context.correlation_id, hdrs.SERVER: SERVER},
            ping_interval=PING_SECONDS,
            send_timeout=SEND_SECONDS_MAX,
        )
        response.headers.update(UNCACHED)  # aiohttp-sse sets a Cache-Control of its own
        if request.method == hdrs.METH_HEAD:
            return web.Response(headers=response.headers)
        with streams.slot(context.caller):
            async with feed.follow(streams.closed, streams.looks_every_seconds) as run:
                context.record_now(response.status)
                await response.prepare(request)
                async with response:
                    try:
                        await _ListStream(run, route, conditions, streams, request, response).send_all(resumes_at)
                    except (ConnectionError, TimeoutError, StorageUnavailable):
                        _abort(request)  # the client has gone or does not read; or it connects again, and resumes
                    except Exception as error:  # the headers are sent, so the stream can only end; clients reconnect
                        logger.opt(exception=error).error(
                            "stream failed", route=route.path, correlation_id=context.correlation_id
                        )
                return response

    return handle


def _read_id(text: str | None) -> tuple[datetime, str] | None:
    """
    Return position and run that the id *text* names; None without one.

    Raises:
        ProblemError: 400, it is not an id of such a stream.
    """
    if not text:
        return None
    found = _ID.fullmatch(text)
    if found is None:
        raise _INVALID_ID()
    try:
        position = datetime.fromisoformat(found[1]).astimezone(UTC)
        return max(position, _EARLIEST), found[2] or ""
    except (ValueError, OverflowError):
        raise _INVALID_ID() from None


def _abort(request: web.Request) -> None:
    """Close the connection without waiting for the client to read what was written."""
    if request.transport is not None:
        request.transport.abort()


class _ListStream:
    """Sends the states that meet *conditions* over one connection, as long as the client reads."""

    def __init__(
        self,
        run: FeedRun,
        route: ListStreamRoute,
        conditions: Sequence[Condition],
        streams: Streams,
        request: web.Request,
        response: EventSourceResponse,
    ) -> None:
        self._run = run
        self._route = route
        self._conditions = conditions
        self._streams = streams
        self._request = request
        self._response = response

    async def send_all(self, resumes_at: tuple[datetime, str] | None) -> None:
        """Send what has changed since *resumes_at* and each further change, until the client, the server or the run goes."""
        run = self._run
        position = run.position
        remembered = position if resumes_at is None else run.resumed(*resumes_at)
        if resumes_at is not None and remembered is None:
            await self._send(run.changed_since(resumes_at[0]), _id(*resumes_at), position)
        else:
            position = remembered or position
            await self._send_position(position)
        while self._is_open():
            latest, looks = run.position, run.looks_after(position)
            if looks is None:  # the client is too far behind
                await self._send(run.changed_since(position), _id(position, run.instance), latest)
            elif looks:
                await self._send(_latest_keys(looks), _id(position, run.instance), latest)
            elif latest != position:
                await self._send_position(latest)
            position = latest
            if run.position == position:
                await run.next_look(self._streams.closed, self._streams.poll_seconds)

    def _is_open(self) -> bool:
        transport = self._request.transport
        return not (self._streams.closed.done() or self._run.is_ended or transport is None or transport.is_closing())

    async def _send(self, batches: AsyncIterable[Sequence[str]], id_before: str, position: datetime) -> None:
        """
        Send the states under the keys of *batches* that meet the conditions; together they lead up to *position*.

        Only the last one has the id of *position*. A client that loses the connection before it resumes where this began.
        The search ends early when the client or the server goes.
        """
        held: str | None = None
        async for keys in batches:
            for shown in await self._run.load(keys):
                if shown.data is not None and all(condition.holds(shown.state) for condition in self._conditions):
                    if held is not None:
                        await self._response.send(held, id=id_before, event=self._route.event_name)
                    held = shown.data
            await asyncio.sleep(0)  # writing to a client that reads does not wait
            if not self._is_open():  # a search can go through all states without a write that fails
                return
        if held is None:
            await self._send_position(position)
        else:
            await self._response.send(held, id=_id(position, self._run.instance), event=self._route.event_name)

    async def _send_position(self, position: datetime) -> None:
        """Send an id without an event; a client that connects again resumes there (HTML, section 9.2.6)."""
        async with asyncio.timeout(SEND_SECONDS_MAX):
            await self._response.write(f"id: {_id(position, self._run.instance)}\r\n\r\n".encode())


def _id(position: datetime, instance: str) -> str:
    return f"{rfc3339(position)}~{instance}" if instance else rfc3339(position)


async def _latest_keys(looks: Sequence[Look]) -> AsyncIterator[Sequence[str]]:
    """Yield the keys of *looks*, `LOAD_MAX` at a time: each key once, where it has changed last."""
    keys = list(dict.fromkeys(key for look in reversed(looks) for key in reversed(look.keys)))[::-1]
    for at in range(0, len(keys), LOAD_MAX):
        yield keys[at : at + LOAD_MAX]
