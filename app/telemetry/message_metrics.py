"""Count and time the messages that one module handles."""

from __future__ import annotations

__all__ = ["MessageMetrics", "seconds_since"]

from collections.abc import Mapping
from datetime import datetime

from app.telemetry.metrics import Metrics


class MessageMetrics:
    """The message metrics of *module*, with the labels bound once."""

    def __init__(self, module: str, metrics: Metrics) -> None:
        self._module = module
        self._messages = metrics.messages_handled
        self._seconds = metrics.message_handle_seconds.labels(module)
        self._lag_seconds = metrics.message_lag_seconds.labels(module)

    def count(self, subject: str, outcome: str, count: int = 1) -> None:
        """Count *count* messages on *subject* that ended in *outcome*."""
        self._messages.labels(self._module, subject, outcome).inc(count)

    def observe(self, seconds: float, counts: Mapping[str | None, int], now: datetime) -> None:
        """
        Record that a batch of messages took *seconds* each.

        *counts* is the number of messages by the time at which their events occurred, in ISO 8601; None: no event.
        """
        self._seconds.observe(seconds, sum(counts.values()))
        for occurred_at, count in counts.items():
            if occurred_at is not None:
                self._lag_seconds.observe(seconds_since(occurred_at, now), count)


def seconds_since(occurred_at: str, now: datetime) -> float:
    """Return the seconds from *occurred_at* (ISO 8601) to *now*; 0 if they are negative or the text is no valid time."""
    try:
        return max(0.0, (now - datetime.fromisoformat(occurred_at)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
