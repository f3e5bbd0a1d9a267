"""
Add up the HTTP metrics of all workers in the process that runs the modules, which answers ``/metrics``.

A worker reports what it has counted since its last report, once a second and before it passes a request on, so a scrape
through a worker contains that worker's own requests::

    ["metrics", [[labels, count], ...], [[labels, [bucket counts], sum], ...]]
"""

from __future__ import annotations

__all__ = ["REPORT_SECONDS", "MetricsReport", "add_report"]

from collections.abc import Callable

from app.telemetry.metrics import Metrics
from app.web.workers.channel import Message

REPORT_SECONDS = 1.0


class MetricsReport:
    """Reports the HTTP metrics of one worker, which *metrics* counts, through *send*."""

    def __init__(self, metrics: Metrics, send: Callable[[Message], None]) -> None:
        self._metrics = metrics
        self._send = send
        self._counts: dict[tuple[str, ...], float] = {}
        self._buckets: dict[tuple[str, ...], tuple[list[int], float]] = {}

    def report(self) -> None:
        """Send what has been counted since the last call, if anything has."""
        counts, times = [], []
        for labels, counter in self._metrics.http_requests.items():
            before, self._counts[labels] = self._counts.get(labels, 0), counter.value
            if counter.value > before:
                counts.append([labels, counter.value - before])
        for labels, histogram in self._metrics.http_request_seconds.items():
            buckets, sum = self._buckets.get(labels, ([0] * len(histogram.counts), 0.0))
            self._buckets[labels] = list(histogram.counts), histogram.sum
            if histogram.counts != buckets:
                grown = [now - before for now, before in zip(histogram.counts, buckets, strict=True)]
                times.append([labels, grown, histogram.sum - sum])
        if counts or times:
            self._send(["metrics", counts, times])


def add_report(message: Message, metrics: Metrics) -> None:
    """Add what a worker has reported in *message* to *metrics*."""
    _, counts, times = message
    for labels, count in counts:
        metrics.http_requests.labels(*labels).inc(count)
    for labels, buckets, sum in times:
        metrics.http_request_seconds.labels(*labels).add(buckets, sum)
