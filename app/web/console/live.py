"""
Parts of pages that follow the present state, as server-sent events: read and rendered once for all browsers that show the same.

A channel runs while a browser follows it. It reads the state every `INTERVAL_SECONDS`, or less often: all channels together
spend at most `SHARE_MAX` of the time on reading and rendering, so that open pages cannot slow the orders down.
"""

from __future__ import annotations

__all__ = ["ENDED", "INTERVAL_SECONDS", "PROBLEM", "SHARE_MAX", "Live", "pause_seconds"]

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from time import thread_time
from typing import Any

from aiohttp import hdrs, web
from aiohttp_sse import EventSourceResponse
from loguru import logger

from app.web.console.frame import Visit
from app.web.handler import SERVER, problem_for
from app.web.operations.module_api import ModuleUnreachable
from app.web.responses.problems import X_CORRELATION_ID
from app.web.responses.success import UNCACHED
from app.web.streams.list_stream import SEND_SECONDS_MAX
from app.web.streams.state_stream import PING_SECONDS, Streams

INTERVAL_SECONDS = 2.0

SHARE_MAX = 0.01
"""Part of one processor's time that all channels together spend on reading and rendering. The threads of the databases and the
sending come on top, so that ten open pages take at most 2 %."""

ENDED = "ended"
"""Event after which a page loads itself anew: its session has ended."""

PROBLEM = "problem"
"""Event with the message that the state cannot be read, or with nothing once it can be read again."""

Fetch = Callable[[], Awaitable[Any]]
Show = Callable[[Any], Mapping[str, str]]


class Live:
    """The channels of one application; *streams* limits and ends its connections."""

    def __init__(self, streams: Streams, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._streams = streams
        self._interval_seconds = interval_seconds
        self._channels: dict[Hashable, _Channel] = {}

    async def stream(self, visit: Visit, key: Hashable, fetch: Fetch, show: Show) -> web.StreamResponse:
        """
        Send what *show* makes of what *fetch* returns, now and after each change: HTML by the name of the event.

        All callers with the same *key* share one channel, whose first caller gives *fetch* and *show*. The caller's session is
        checked before each event.
        """
        response = EventSourceResponse(
            headers={X_CORRELATION_ID: visit.correlation_id, hdrs.SERVER: SERVER},
            ping_interval=PING_SECONDS,
            send_timeout=SEND_SECONDS_MAX,
        )
        response.headers.update(UNCACHED)  # aiohttp-sse sets a Cache-Control of its own
        if visit.request.method == hdrs.METH_HEAD:
            return web.Response(headers=response.headers)
        with self._streams.slot(visit.key.name):
            visit.record_now(response.status)
            await response.prepare(visit.request)
            async with response:
                channel = self._enter(key, fetch, show)
                try:
                    await self._send_all(visit, channel, response)
                except (ConnectionError, TimeoutError):  # the client has gone, or does not read
                    pass
                finally:
                    channel.followers -= 1
        return response

    def _enter(self, key: Hashable, fetch: Fetch, show: Show) -> _Channel:
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = _Channel(fetch, show)
            channel.task = asyncio.create_task(self._run(key, channel), name="live part of the console")
        channel.followers += 1
        return channel

    async def _send_all(self, visit: Visit, channel: _Channel, response: EventSourceResponse) -> None:
        closed, transport = self._streams.closed, visit.request.transport
        sent: dict[str, str] = {}
        while not (closed.done() or transport is None or transport.is_closing()):
            if not visit.is_valid():
                await response.send("", event=ENDED)
                return
            for event, text in channel.shown.items():
                if sent.get(event, "" if event == PROBLEM else None) != text:
                    await response.send(text, event=event)
                    sent[event] = text
            await asyncio.wait({channel.changed, closed}, timeout=PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)

    async def _run(self, key: Hashable, channel: _Channel) -> None:
        closed, is_compiled = self._streams.closed, False
        try:
            while channel.followers and not closed.done():
                started = thread_time()
                await channel.step()
                pause = pause_seconds(thread_time() - started, len(self._channels), self._interval_seconds)
                # The first step also compiles the templates: the next ones take less time.
                await asyncio.wait({closed}, timeout=pause if is_compiled else self._interval_seconds)
                is_compiled = True
        finally:
            del self._channels[key]


def pause_seconds(step_seconds: float, channels: int, interval_seconds: float) -> float:
    """
    Return how long a channel waits after a step that took *step_seconds* of the processor, if there are *channels* of them.

    The time counts what other tasks did meanwhile, too: the busier the process is with orders, the longer the pause.
    """
    return max(interval_seconds, step_seconds * channels / SHARE_MAX)


class _Channel:
    def __init__(self, fetch: Fetch, show: Show) -> None:
        self._fetch = fetch
        self._show = show
        self._state: Any = None
        self.task: asyncio.Task[None] | None = None
        self.followers = 0
        self.shown: Mapping[str, str] = {}
        self.changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def step(self) -> None:
        """Read the state, and render it if it has changed."""
        try:
            state = await self._fetch()
            if self.shown.get(PROBLEM) == "" and state == self._state:
                return
            shown = {**self._show(state), PROBLEM: ""}
            self._state = state
        except Exception as error:
            message = _message(error)
            shown = {**self.shown, PROBLEM: message}
            if message != self.shown.get(PROBLEM) and problem_for(error).status == 500:
                logger.opt(exception=error).error("a live part of the console failed")
        if shown != self.shown:
            self.shown = shown
            self.changed.set_result(None)
            self.changed = asyncio.get_running_loop().create_future()


def _message(error: Exception) -> str:
    """Return plain text for a person."""
    if isinstance(error, ModuleUnreachable):
        return f"The module {error.module} is out of reach. The page shows what was known before."
    return "The state cannot be read now. The page shows what was known before."
