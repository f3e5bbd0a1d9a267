"""What counters have counted within the last seconds."""

from __future__ import annotations

__all__ = ["LAG_COUNT", "LAG_SECONDS", "WINDOW_SECONDS", "Rates", "read_counters"]

from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic

from app.telemetry.metrics import Metrics
from modules.orders.state import Status

WINDOW_SECONDS = 10
"""The rates are those of this time; a process that is younger has those since its start."""


LAG_SECONDS, LAG_COUNT = "lag_seconds:", "lag_count:"
"""What the names of the counters of a module begin with: the sum of the ages of its messages, and their number."""


def read_counters(metrics: Metrics) -> dict[str, float]:
    """Return how many orders have reached each status, by its name, and the age and number of messages of each module."""
    found = {status.value: 0.0 for status in Status}
    found |= {status: counter.value for (status,), counter in metrics.orders.items()}
    for (module,), lag in metrics.message_lag_seconds.items():
        found[f"{LAG_SECONDS}{module}"], found[f"{LAG_COUNT}{module}"] = lag.sum, sum(lag.counts)
    return found


class Rates:
    """
    How much counters have grown within *window_seconds*.

    `step` takes a sample of *read*, which returns counters by name. With a window of 0 the growth is that since the latest sample.
    """

    def __init__(
        self, read: Callable[[], Mapping[str, float]], now: Callable[[], float] = monotonic, window_seconds: float = WINDOW_SECONDS
    ) -> None:
        self._read = read
        self._now = now
        self._window_seconds = window_seconds
        self._samples: deque[tuple[float, Mapping[str, float]]] = deque([(now(), dict(read()))])

    def step(self) -> None:
        """Take a sample, and forget the one that is too old."""
        now = self._now()
        self._samples.append((now, dict(self._read())))
        while len(self._samples) > 1 and self._samples[1][0] <= now - self._window_seconds:
            self._samples.popleft()

    def growth(self) -> tuple[Mapping[str, float], float]:
        """Return by how much each counter has grown since the oldest sample, and for how many seconds."""
        at, first = self._samples[0]
        last = self._read()
        return {name: value - first.get(name, 0.0) for name, value in last.items()}, max(self._now() - at, 1.0)
