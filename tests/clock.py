"""A clock that is turned by hand."""

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
    Keep `bus.port.Clock`'s promises in a time that stands still until somebody turns it.

    Those who sleep wake in the order of their times, each before the clock goes on: what one of them starts, even a
    further sleep, falls into the same turn. The clock sees only what runs on the event loop; work on a thread has to be
    awaited by whoever started it.
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
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed_seconds + seconds, next(self._ordinals), future))
        await future

    @property
    def sleepers(self) -> int:
        """How many are asleep now."""
        return sum(not future.done() for _, _, future in self._sleepers)

    def next_wake(self) -> float | None:
        """Return when the first sleeper wakes, in `monotonic` seconds; None when nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def advance(self, seconds: float) -> None:
        """Let *seconds* pass, and everything happen that falls into them."""
        until = self._elapsed_seconds + seconds
        await self.settle()
        while (at := self.next_wake()) is not None and at <= until + 1e-9:  # two ways of adding up to one moment may differ by a hair
            await self._wake_first(at)
        self._elapsed_seconds = until

    async def run(self, awaitable: Awaitable[T], within_seconds: float = 3600.0) -> T:
        """
        Turn the clock from sleeper to sleeper until *awaitable* is done, and return its result.

        Raises:
            TimeoutError: *within_seconds* have passed, or nothing is left that could go on; *awaitable* is cancelled.
        """
        task = asyncio.ensure_future(awaitable)
        until = self._elapsed_seconds + within_seconds
        await self.settle()
        while not task.done():
            at = self.next_wake()
            if at is None or at > until:
                task.cancel()
                await self.settle()
                raise TimeoutError(f"not done within {within_seconds:g} s" if at else "not done, and nobody sleeps")
            await self._wake_first(at)
        return task.result()

    async def settle(self) -> None:
        """
        Let everything run that can run while the clock stands still.

        Raises:
            AssertionError: It does not come to rest: something goes round and round without waiting.
        """
        # The loop's own queue says exactly when nothing is left. It is private, but all of CPython's loops written in
        # Python have it; a fixed number of turns would be a guess.
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
