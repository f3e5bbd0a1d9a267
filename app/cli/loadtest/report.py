"""What a run has seen, and the numbers that follow from it."""

from __future__ import annotations

__all__ = ["Progress", "Result", "Tally", "percentiles"]

import math
from array import array
from collections.abc import Sequence
from typing import TypedDict

from attrs import Factory, define, frozen


class Percentiles(TypedDict):
    """Milliseconds; None where nothing was measured."""

    p50: float | None
    p95: float | None
    p99: float | None


class Result(TypedDict):
    """The JSON object of a run, as the reference documents it."""

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
    """How far a run has come, *seconds* after its first POST."""

    orders: int
    placed: int
    confirmed: int
    cancelled: int
    seconds: float

    @property
    def placed_per_s(self) -> float:
        """Orders that were accepted, by the second, since the first POST."""
        return self.placed / self.seconds if self.seconds > 0 else 0.0


def _doubles() -> array[float]:
    return array("d")


@define
class Tally:
    """
    The running count. All moments are seconds of this process's ``perf_counter``; uvloop's clock counts milliseconds.

    Two clocks take part, and only differences on one of them are ever used. An order's end is set at the moment its
    202 came in, plus the time that the server's own stamps put between ``created_at`` and the terminal entry of the
    timeline. ``created_at`` lies before the 202 comes in, so the true end is never later than that, and earlier by at
    most the time that POST took. When the generator looked does not enter.
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
    """When the stock was seen taken, if it was not yet at the first look; else 0."""
    accept_seconds: array[float] = Factory(_doubles)
    complete_seconds: array[float] = Factory(_doubles)

    @property
    def ended(self) -> int:
        """Accepted orders that are known to have reached their end."""
        return self.confirmed + self.cancelled

    def accept(self, sent_at: float, answered_at: float) -> None:
        """Count one 202 for an order that was sent, or due to be sent, at *sent_at*."""
        self.accepted += 1
        self.accept_seconds.append(answered_at - sent_at)
        self.last_answered_at = max(self.last_answered_at, answered_at)

    def end(self, *, is_confirmed: bool, sent_at: float, answered_at: float, seconds: float) -> None:
        """Count the end of one order, *seconds* after its ``created_at`` by the server's clock."""
        if is_confirmed:
            self.confirmed += 1
        else:
            self.cancelled += 1
        ended_at = answered_at + max(seconds, 0.0)
        self.complete_seconds.append(ended_at - sent_at)
        self.last_ended_at = max(self.last_ended_at, ended_at)

    def progress(self, now: float) -> Progress:
        """Return how far the run has come by *now*."""
        seconds = 0.0 if self.first_sent_at is None else now - self.first_sent_at
        return Progress(self.orders, self.accepted, self.confirmed, self.cancelled, seconds)

    def result(self) -> Result:
        """Return the numbers of the whole run; rates are 0 and percentiles None where there is nothing to measure."""
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
    """Return exact percentiles in milliseconds, by nearest rank: each is a value that occurred."""
    ordered = sorted(seconds)

    def at(percent: int) -> float | None:
        return round(ordered[math.ceil(percent * len(ordered) / 100) - 1] * 1000, 3) if ordered else None

    return Percentiles(p50=at(50), p95=at(95), p99=at(99))
