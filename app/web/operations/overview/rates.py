"""What counters have counted within the last seconds."""

from __future__ import annotations

__all__ = ["WINDOW_SECONDS", "Rates"]

from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic

WINDOW_SECONDS = 10
"""The rates are those of this time; a process that is younger has those since its start."""


class Rates:
    """Samples *read*, which returns counters by name, once a second; `step` takes a sample."""

    def __init__(self, read: Callable[[], Mapping[str, float]], now: Callable[[], float] = monotonic) -> None:
        self._read = read
        self._now = now
        self._samples: deque[tuple[float, Mapping[str, float]]] = deque([(now(), dict(read()))])

    def step(self) -> None:
        """Take a sample, and forget the one that is too old."""
        now = self._now()
        self._samples.append((now, dict(self._read())))
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW_SECONDS:
            self._samples.popleft()

    def growth(self) -> tuple[Mapping[str, float], float]:
        """Return by how much each counter has grown since the oldest sample, and for how many seconds."""
        at, first = self._samples[0]
        last = self._read()
        return {name: value - first.get(name, 0.0) for name, value in last.items()}, max(self._now() - at, 1.0)
