"""The last hour of one process, in memory: how many orders it accepts and ends, what waits for the bus, and how late messages are."""

from __future__ import annotations

__all__ = ["INTERVAL_SECONDS", "POINTS_MAX", "Point", "Samples"]

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic, time

from aiohttp import web
from attrs import frozen

from app.telemetry.metrics import Metrics
from app.web.operations.overview.rates import LAG_COUNT, LAG_SECONDS, Rates, read_counters
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


class Samples:
    """The points of the last hour, from *metrics*; a sample reads counters only, no database. *now* is in seconds since 1970, *elapsed* in seconds."""

    def __init__(self, metrics: Metrics, now: Callable[[], float] = time, elapsed: Callable[[], float] = monotonic) -> None:
        self._metrics = metrics
        self._now = now
        self._points: deque[Point] = deque(maxlen=POINTS_MAX)
        self._rates = Rates(partial(read_counters, metrics), elapsed, window_seconds=0)

    @property
    def points(self) -> Sequence[Point]:
        """The points, the oldest first."""
        return tuple(self._points)

    def step(self) -> None:
        """Take a sample."""
        growth, seconds = self._rates.growth()
        count = sum(value for name, value in growth.items() if name.startswith(LAG_COUNT))
        age = sum(value for name, value in growth.items() if name.startswith(LAG_SECONDS))
        self._points.append(
            Point(
                at=int(self._now()),
                accepted_per_s=round(growth["processing"] / seconds, 2),
                completed_per_s=round((growth["confirmed"] + growth["cancelled"]) / seconds, 2),
                outbox_pending=self._pending(),
                lag_seconds=round(age / count, 4) if count else None,
            )
        )
        self._rates.step()

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

    def _pending(self) -> int:
        samples = [sample for _, gauge in self._metrics.outbox_pending.items() for sample in gauge.samples("")]
        return int(sum(value for _, _, value in samples))
