"""Find stalled consumers: a consumer that has messages to deliver, and delivers none, is stalled."""

from __future__ import annotations

__all__ = ["StallDetector"]

from collections.abc import Callable, Sequence

from bus.jetstream.admin.server_config import ServerConfig

STALLED_SECONDS = 60.0


class StallDetector:
    """
    Compares what the server reports about each consumer at one look with what it reported before.

    *monotonic* is the clock. A consumer is stalled once it has had undelivered messages for *limit_seconds* without having
    delivered any.
    """

    def __init__(self, monotonic: Callable[[], float], limit_seconds: float = STALLED_SECONDS) -> None:
        self._monotonic = monotonic
        self._limit_seconds = limit_seconds
        self._waiting: dict[str, tuple[int, float, str]] = {}
        """By consumer: the number of its last delivery, since when it has been that, and the line to report."""

    def observe(self, label: str, found: ServerConfig) -> None:
        """Take note of the consumer *label* as the server describes it now."""
        pending = int(found.info.get("num_pending") or 0)
        delivered = int((found.info.get("delivered") or {}).get("consumer_seq") or 0)
        if not pending and not found.paused:
            self._waiting.pop(label, None)
            return
        last, since, _ = self._waiting.get(label, (None, 0.0, ""))
        if last != delivered:
            since = self._monotonic()
        reason = f"is paused until {found.paused}" if found.paused else f"delivers none of {pending} messages"
        self._waiting[label] = delivered, since, reason

    def forget(self, label: str) -> None:
        """Drop what is known about the consumer *label*."""
        self._waiting.pop(label, None)

    @property
    def stalls(self) -> Sequence[str]:
        """One line for each stalled consumer."""
        now = self._monotonic()
        return [
            f"{label} {reason} (for {now - since:.0f} s)"
            for label, (_, since, reason) in sorted(self._waiting.items())
            if now - since >= self._limit_seconds
        ]
