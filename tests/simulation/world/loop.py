"""An event loop on virtual time: the clock stands still while anything can run, and then jumps to the next timer."""

from __future__ import annotations

__all__ = ["START", "ProcessClock", "SimulatedLoop", "Stuck", "new_uuid"]

import asyncio
import heapq
import itertools
import selectors
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from attrs import define

from tests.simulation.world.scope import holds

Connect = Callable[[str, asyncio.BaseProtocol], Awaitable[asyncio.Transport]]
"""Connects a protocol from a host to the server."""

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
"""The wall-clock time at second 0 of each run."""

TURNS_MAX = 200_000
"""Turns of the loop without a step of the clock; a task that needs more runs in circles."""

_DIGITS = 6
"""Decimals of a time in seconds."""


class Stuck(AssertionError):
    """Nothing can run any more, or a task runs in circles while the clock stands still."""


class _Timer(asyncio.TimerHandle):
    """A timer that comes after those of the same moment that were set before it, with every version of Python."""

    __slots__ = ("ordinal",)

    def __init__(self, ordinal: int, when: float, callback: Any, args: Any, loop: Any, context: Any) -> None:
        super().__init__(when, callback, args, loop, context)
        self.ordinal = ordinal

    def __lt__(self, other: Any) -> bool:
        return (self.when(), self.ordinal) < (other.when(), other.ordinal)


    def _run(self) -> None:
        if not holds(self):
            super()._run()


class _Handle(asyncio.Handle):
    """A callback that waits while its process is stopped."""

    __slots__ = ()

    def _run(self) -> None:
        if not holds(self):
            super()._run()


class _Selector(selectors.SelectSelector):
    """Waits for no file: a wait advances the clock of *loop*."""

    loop: SimulatedLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("nothing can run, and no timer is set")
        if timeout > 0:
            self.loop.advance()
        else:
            self.loop.count_turn()
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """
    An event loop whose time is virtual. Everything runs in one thread, in an order that follows from the program alone.

    `asyncio.sleep`, `asyncio.timeout` and all that is built on them wait for the virtual time.
    """

    connect: Connect | None = None
    """What opens the connections of the loop, if there is a network."""

    def __init__(self) -> None:
        self._now = 0.0
        self._turns = 0
        self._ordinals = itertools.count()
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self._now

    def advance(self) -> None:
        """Set the clock to the time of the next timer."""
        self._turns = 0
        self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]

    def count_turn(self) -> None:
        """
        Count a turn in which the clock stands still.

        Raises:
            Stuck: There were too many.
        """
        self._turns += 1
        if self._turns > TURNS_MAX:
            raise Stuck(f"the loop is still busy after {TURNS_MAX} turns")

    def _call_soon(self, callback: Any, args: Any, context: Context | None) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        # Sums of times differ by rounding errors. A task that waits for such a difference must not wait without an end.
        at = round(when, _DIGITS)
        if at <= self._now < when:
            at = round(self._now + 10.0**-_DIGITS, _DIGITS)
        timer = _Timer(next(self._ordinals), at, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    async def create_connection(  # type: ignore[override]
        self, factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        if self.connect is None:
            raise OSError("there is no network")
        protocol = factory()
        return await self.connect(host, protocol), protocol

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Call *func* at once, as there is no other thread; through *executor* if that makes calls at once itself."""
        future: asyncio.Future[Any] = self.create_future()
        try:
            is_thread = executor is None or isinstance(executor, ThreadPoolExecutor)
            future.set_result(func(*args) if is_thread else executor.submit(func, *args).result())
        except BaseException as error:  # also the end of a process
            future.set_exception(error)
        return future

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)  # there is no other thread


@define(eq=False)
class ProcessClock:
    """The `bus.port.Clock` of one process, whose wall clock is *skew_seconds* ahead."""

    time: Callable[[], float]
    skew_seconds: float = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.time() + self.skew_seconds)

    def monotonic(self) -> float:
        return self.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def new_uuid(seconds: float, text: str) -> str:
    """Return a UUIDv7 of the time *seconds* of the run; equal arguments give equal ids."""
    milliseconds = int((START.timestamp() + seconds) * 1000)
    digits = sha256(text.encode()).hexdigest()
    head = f"{milliseconds:012x}"
    return f"{head[:8]}-{head[8:]}-7{digits[:3]}-{'89ab'[int(digits[3], 16) % 4]}{digits[4:7]}-{digits[7:19]}"
