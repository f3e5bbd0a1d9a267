"""What is counted of the messages that one module handles."""

from __future__ import annotations

__all__ = ["MessageMetrics", "seconds_since"]

from collections.abc import Mapping
from datetime import datetime

from app.telemetry.metrics import Metrics


class MessageMetrics:
    """The tallies of *module*, found once."""

    def __init__(self, module: str, metrics: Metrics) -> None:
        self._module = module
        self._messages = metrics.messages_handled
        self._seconds = metrics.message_handle_seconds.labels(module)
        self._lag_seconds = metrics.message_lag_seconds.labels(module)

    def count(self, subject: str, outcome: str, count: int = 1) -> None:
        """Count *count* messages on *subject* that ended in *outcome*."""
        self._messages.labels(self._module, subject, outcome).inc(count)

    def observe(self, seconds: float, said: Mapping[str | None, int], now: datetime) -> None:
        """Note that messages were handled within *seconds*; *said* counts them by when their events were said."""
        self._seconds.observe(seconds, sum(said.values()))
        for said_at, count in said.items():
            if said_at is not None:
                self._lag_seconds.observe(seconds_since(said_at, now), count)


def seconds_since(occurred_at: str, now: datetime) -> float:
    """Return for how long an event has been said; 0 where its envelope makes no sense."""
    try:
        return max(0.0, (now - datetime.fromisoformat(occurred_at)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
