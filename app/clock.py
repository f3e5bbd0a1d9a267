"""The clock of the running application; tests use a virtual one instead."""

from __future__ import annotations

__all__ = ["SystemClock"]

import asyncio
import time
from datetime import UTC, datetime, timedelta


class SystemClock:
    """
    Implements `bus.port.Clock`: the wall clock as read at start, advanced by the monotonic clock.

    A step of the machine's clock has no effect until the next start: no order times out because of it.
    """

    def __init__(self) -> None:
        self._started = datetime.now(UTC) - timedelta(seconds=time.monotonic())
        self._adjustment = timedelta(0)

    def adjust(self, by: timedelta) -> None:
        """Run *by* ahead of the machine's clock, or behind it; call it before anything reads the time."""
        self._started += by
        self._adjustment += by

    def step(self) -> timedelta:
        """Return by how much the machine's clock has been set since the start, ahead or back; near zero if it was not."""
        return datetime.now(UTC) + self._adjustment - self.now()

    def now(self) -> datetime:
        return self._started + timedelta(seconds=time.monotonic())

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
