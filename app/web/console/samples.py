"""The last hour of one process, in memory: how many orders it accepts and ends, what waits for the bus, and how late messages are."""

from __future__ import annotations

__all__ = ["INTERVAL_SECONDS", "POINTS_MAX", "Point", "Samples"]

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from time import time

from aiohttp import web
from attrs import frozen

from app.telemetry.metrics import Metrics
from bus.tasks import cancel_tasks

INTERVAL_SECONDS = 10.0
POINTS_MAX = 360


@frozen
class Point:
    """What happened within one interval."""

    at: int
    """The end of the interval, in seconds since 1970."""
    accepted_per_s: float
    completed_per_s: float
    outbox_pending: int
    lag_seconds: float | None
    """Mean age of the messages that were handled; None if there was none."""


@frozen
class _Counters:
    accepted: float
    completed: float
    lag_sum: float
    lag_count: int


class Samples:
    """The points of the last hour, from *metrics*; a sample reads counters only, no database. *now* is in seconds since 1970."""

    def __init__(self, metrics: Metrics, now: Callable[[], float] = time) -> None:
        self._metrics = metrics
        self._now = now
        self._points: deque[Point] = deque(maxlen=POINTS_MAX)
        self._latest = self._read()
        self._at = now()

    @property
    def points(self) -> Sequence[Point]:
        """The points, the oldest first."""
        return tuple(self._points)

    def step(self) -> None:
        """Take a sample."""
        now, counters, before = self._now(), self._read(), self._latest
        seconds = max(now - self._at, 0.001)
        count = counters.lag_count - before.lag_count
        self._points.append(
            Point(
                at=int(now),
                accepted_per_s=round((counters.accepted - before.accepted) / seconds, 2),
                completed_per_s=round((counters.completed - before.completed) / seconds, 2),
                outbox_pending=self._pending(),
                lag_seconds=round((counters.lag_sum - before.lag_sum) / count, 4) if count else None,
            )
        )
        self._latest, self._at = counters, now

    def attach(self, app: web.Application) -> None:
        """Take a sample every `INTERVAL_SECONDS` while *app* runs."""
        tasks: list[asyncio.Task[None]] = []

        async def start(app: web.Application) -> None:
            tasks.append(asyncio.create_task(self._run(), name="samples of the console"))

        async def stop(app: web.Application) -> None:
            await cancel_tasks(tasks)

        app.on_startup.append(start)
        app.on_cleanup.append(stop)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            self.step()

    def _read(self) -> _Counters:
        reached = {status: counter.value for (status,), counter in self._metrics.orders.items()}
        lags = [lag for _, lag in self._metrics.message_lag_seconds.items()]
        return _Counters(
            accepted=reached.get("processing", 0),
            completed=reached.get("confirmed", 0) + reached.get("cancelled", 0),
            lag_sum=sum(lag.sum for lag in lags),
            lag_count=sum(sum(lag.counts) for lag in lags),
        )

    def _pending(self) -> int:
        samples = [sample for _, gauge in self._metrics.outbox_pending.items() for sample in gauge.samples("")]
        return int(sum(value for _, _, value in samples))
