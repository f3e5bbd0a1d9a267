"""What a run has counted, and the figures computed from it."""

from __future__ import annotations

__all__ = ["Progress", "Result", "Tally", "percentiles"]

import math
from array import array
from collections.abc import Sequence
from typing import TypedDict

from attrs import Factory, define, frozen


class Percentiles(TypedDict):
    """Percentiles in milliseconds; None where nothing was measured."""

    p50: float | None
    p95: float | None
    p99: float | None


class Result(TypedDict):
    """The result of a run: the JSON object that the `load` command prints as its last line."""

    orders: int
    accepted: int
    confirmed: int
    cancelled: int
    lost: int
    seconds: float
    accepted_per_s: float
    completed_per_s: float
    accept_ms: Percentiles
    complete_ms: Percentiles


@frozen
class Progress:
    """The state of a run, *seconds* after its first POST."""

    orders: int
    placed: int
    confirmed: int
    cancelled: int
    seconds: float

    @property
    def placed_per_s(self) -> float:
        """Accepted orders per second since the first POST."""
        return self.placed / self.seconds if self.seconds > 0 else 0.0


def _doubles() -> array[float]:
    return array("d")


@define
class Tally:
    """
    Counts the orders of a run and collects their times.

    All points in time are seconds of this process's ``perf_counter``, because uvloop's clock has a resolution of one
    millisecond only.

    Two clocks are involved, the server's and this process's, and only differences on the same clock are used. The end of
    an order is the moment at which its 202 arrived, plus the time between ``created_at`` and the final entry of the
    timeline by the server's own timestamps. ``created_at`` is before the arrival of the 202, so the true end is never
    later than the computed one, and earlier by at most the duration of the POST. The moment at which the load test
    polled does not matter.
    """

    orders: int
    accepted: int = 0
    confirmed: int = 0
    cancelled: int = 0
    lost: int = 0
    first_sent_at: float | None = None
    last_answered_at: float = 0.0
    last_ended_at: float = 0.0
    stock_taken_at: float = 0.0
    """When the stock was first seen to match, if it did not match at the first check; else 0."""
    accept_seconds: array[float] = Factory(_doubles)
    complete_seconds: array[float] = Factory(_doubles)

    @property
    def ended(self) -> int:
        """Accepted orders that are known to have reached a final state."""
        return self.confirmed + self.cancelled

    def accept(self, sent_at: float, answered_at: float) -> None:
        """Count one 202 for an order that was sent, or was due, at *sent_at*."""
        self.accepted += 1
        self.accept_seconds.append(answered_at - sent_at)
        self.last_answered_at = max(self.last_answered_at, answered_at)

    def end(self, *, is_confirmed: bool, sent_at: float, answered_at: float, seconds: float) -> None:
        """Count one order that reached a final state *seconds* after its ``created_at`` by the server's clock."""
        if is_confirmed:
            self.confirmed += 1
        else:
            self.cancelled += 1
        ended_at = answered_at + max(seconds, 0.0)
        self.complete_seconds.append(ended_at - sent_at)
        self.last_ended_at = max(self.last_ended_at, ended_at)

    def progress(self, now: float) -> Progress:
        """Return the state of the run at *now*."""
        seconds = 0.0 if self.first_sent_at is None else now - self.first_sent_at
        return Progress(self.orders, self.accepted, self.confirmed, self.cancelled, seconds)

    def result(self) -> Result:
        """Return the figures of the whole run; rates are 0 and percentiles None where nothing was measured."""
        first = self.first_sent_at or 0.0
        accepting = max(self.last_answered_at - first, 0.0)
        seconds = max(self.last_answered_at, self.last_ended_at, self.stock_taken_at, first) - first
        return Result(
            orders=self.orders,
            accepted=self.accepted,
            confirmed=self.confirmed,
            cancelled=self.cancelled,
            lost=self.lost,
            seconds=round(seconds, 3),
            accepted_per_s=round(self.accepted / accepting, 1) if accepting else 0.0,
            completed_per_s=round(self.confirmed / seconds, 1) if seconds else 0.0,
            accept_ms=percentiles(self.accept_seconds),
            complete_ms=percentiles(self.complete_seconds),
        )


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """Return exact percentiles of *seconds*, in milliseconds, by nearest rank: each is a value that occurred."""
    ordered = sorted(seconds)

    def at(percent: int) -> float | None:
        return round(ordered[math.ceil(percent * len(ordered) / 100) - 1] * 1000, 3) if ordered else None

    return Percentiles(p50=at(50), p95=at(95), p99=at(99))
