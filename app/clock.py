"""The time, as everybody else gets it."""

from __future__ import annotations

__all__ = ["SystemClock"]

import asyncio
import time
from datetime import UTC, datetime, timedelta


class SystemClock:
    """
    The wall clock as it stood at start, carried on by the monotonic one.

    So an hour that somebody turns the machine's clock by is no hour for us: no order times out at once because of it.
    After a restart the machine's clock counts again. See `bus.port.Clock`.
    """

    def __init__(self) -> None:
        self._started = datetime.now(UTC) - timedelta(seconds=time.monotonic())

    def now(self) -> datetime:
        return self._started + timedelta(seconds=time.monotonic())

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
