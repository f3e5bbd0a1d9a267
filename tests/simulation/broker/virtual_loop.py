"""
The running event loop without real time and without sockets.

The timers of asyncio are those of a `tests.clock.VirtualClock`, and `asyncio.open_connection` leads to a simulated network. So
code that knows nothing of either runs unchanged: the NATS client with its time-outs, pings and reconnects.
"""

from __future__ import annotations

__all__ = ["Connector", "client_time", "passing", "virtual_loop"]

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from types import SimpleNamespace
from typing import Any, Protocol
from unittest.mock import patch

import nats.aio.client
import nats.js.client

from tests.clock import VirtualClock

_LATE_SECONDS = 1e-9
"""A timer of a real loop is always a little late; the NATS client goes in circles if nothing is left of its time-out, not even less."""


class Connector(Protocol):
    """What opens the connections of a loop."""

    async def connect(self, host: str, protocol: asyncio.BaseProtocol) -> asyncio.Transport:
        """
        Return a connection of *protocol* to *host*.

        Raises:
            OSError: The host refuses it.
        """


class _Timer(asyncio.TimerHandle):
    """A timer of the loop that a virtual clock wakes."""

    due: asyncio.Future[None]

    def cancel(self) -> None:
        super().cancel()
        self.due.cancel()

    def fire(self, due: asyncio.Future[None]) -> None:
        if not self.cancelled():
            self._run()


@contextmanager
def virtual_loop(clock: VirtualClock, network: Connector) -> Iterator[None]:
    """Give the running loop the time of *clock* and the connections of *network* until the block ends."""
    loop = asyncio.get_running_loop()

    def call_at(when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:
        if when <= clock.monotonic():
            return loop.call_soon(callback, *args, context=context)
        timer = _Timer(when, callback, args, loop, context)
        timer.due = clock.wake_at(when + _LATE_SECONDS)
        timer.due.add_done_callback(timer.fire)
        return timer

    def call_later(delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:
        return call_at(clock.monotonic() + delay, callback, *args, context=context)

    async def create_connection(factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, **options: Any) -> Any:
        protocol = factory()
        return await network.connect(host, protocol), protocol

    with (
        patch.object(loop, "time", clock.monotonic),
        patch.object(loop, "call_at", call_at),
        patch.object(loop, "call_later", call_later),
        patch.object(loop, "create_connection", create_connection),
        client_time(clock.monotonic),
    ):
        yield


@contextmanager
def client_time(monotonic: Callable[[], float]) -> Iterator[None]:
    """Give the NATS client *monotonic*, by which it spaces its attempts to reconnect and counts what is left of a time-out."""
    time = SimpleNamespace(monotonic=monotonic)
    with patch.object(nats.aio.client, "time", time), patch.object(nats.js.client, "time", time):
        yield


@asynccontextmanager
async def passing(clock: VirtualClock) -> AsyncIterator[None]:
    """
    Let the time of *clock* pass by itself, whenever nothing can run, until the block ends.

    Then a test awaits what it waits for, as on a real clock; it must not advance the clock itself.
    """

    async def run() -> None:
        while True:
            await clock.settle()
            at = clock.next_wake()
            assert at is not None, "nothing can run, and no task sleeps"
            await clock.advance(at - clock.monotonic())

    running = asyncio.create_task(run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])
