"""A clock that stands still until a test advances it."""

from __future__ import annotations

__all__ = ["VirtualClock"]

import asyncio
import heapq
import itertools
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

T = TypeVar("T")

_TURNS_MAX = 100_000


class VirtualClock:
    """
    A `bus.port.Clock` whose time stands still until it is advanced.

    Sleeping tasks wake in the order of their times. The clock goes on only when the task that it has woken waits again,
    so whatever that task starts, even a further sleep, happens at the same moment. The clock sees only what runs on the
    event loop; work on a thread must be awaited by the test.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, 12, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed_seconds = 0.0
        self._ordinals = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed_seconds)

    def monotonic(self) -> float:
        return self._elapsed_seconds

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        await self.wake_at(self._elapsed_seconds + seconds)

    def wake_at(self, at: float) -> asyncio.Future[None]:
        """Return a future that is done when `monotonic` is *at*, and that may be cancelled before."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (at, next(self._ordinals), future))
        return future

    @property
    def sleepers(self) -> int:
        """How many tasks sleep now."""
        return sum(not future.done() for _, _, future in self._sleepers)

    def next_wake(self) -> float | None:
        """Return when the next sleeping task wakes, in `monotonic` seconds; None when no task sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def advance(self, seconds: float) -> None:
        """Let *seconds* pass, and everything happen that is due in them."""
        until = self._elapsed_seconds + seconds
        await self.settle()
        while (at := self.next_wake()) is not None and at <= until + 1e-9:  # sums that should be equal may differ by a rounding error
            await self._wake_first(at)
        self._elapsed_seconds = until

    async def run(self, awaitable: Awaitable[T], within_seconds: float = 3600.0) -> T:
        """
        Advance the clock from one sleeping task to the next until *awaitable* is done, and return its result.

        Raises:
            TimeoutError: *within_seconds* have passed, or no task sleeps that could continue; *awaitable* is cancelled.
        """
        task = asyncio.ensure_future(awaitable)
        until = self._elapsed_seconds + within_seconds
        await self.settle()
        while not task.done():
            at = self.next_wake()
            if at is None or at > until:
                task.cancel()
                await self.settle()
                raise TimeoutError(f"not done within {within_seconds:g} s" if at else "not done, and no task sleeps")
            await self._wake_first(at)
        return task.result()

    async def settle(self) -> None:
        """
        Let everything run that can run while the clock stands still.

        Raises:
            AssertionError: The loop does not become idle: a task runs in circles without waiting.
        """
        # The loop's own queue shows exactly when nothing is left. It is private, but every loop of CPython that is
        # written in Python has it; a fixed number of turns would be a guess.
        ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
        for _ in range(_TURNS_MAX):
            await asyncio.sleep(0)
            if not ready:
                return
        raise AssertionError(f"the loop is still busy after {_TURNS_MAX} turns")

    async def _wake_first(self, at: float) -> None:
        self._elapsed_seconds = max(self._elapsed_seconds, at)
        _, _, future = heapq.heappop(self._sleepers)
        future.set_result(None)
        await self.settle()
