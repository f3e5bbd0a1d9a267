"""The clock of a process, compared with the machine's while it runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app import clock as clock_module
from app.clock import SystemClock
from app.storage.clock_watch import ClockWatch


class _SetClock(datetime):
    """A wall clock that a test sets."""

    by = timedelta(0)

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return datetime.now(UTC) + cls.by


@pytest.mark.parametrize("by", [timedelta(hours=-2), timedelta(minutes=11), timedelta(days=4000)])
def test_a_clock_that_is_set_while_the_process_runs_is_reported_once(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """The process keeps its own time; the problem ends when the clock is set right."""
    monkeypatch.setattr(clock_module, "datetime", _SetClock)
    monkeypatch.setattr(_SetClock, "by", timedelta(0))
    clock = SystemClock()
    watch = ClockWatch({}, clock, timedelta(minutes=10))
    watch.check()
    assert watch.problem == ""
    before = clock.now()
    monkeypatch.setattr(_SetClock, "by", by)
    watch.check()
    assert "the machine's clock was set" in watch.problem
    assert abs(clock.now() - before) < timedelta(seconds=10)
    monkeypatch.setattr(_SetClock, "by", timedelta(seconds=30))
    watch.check()
    assert watch.problem == ""


def test_an_adjusted_clock_is_not_taken_for_one_that_was_set() -> None:
    """The adjustment to a database server's clock is known."""
    clock = SystemClock()
    clock.adjust(timedelta(hours=2))
    watch = ClockWatch({}, clock, timedelta(minutes=10))
    watch.check()
    assert watch.problem == ""
    assert abs(clock.now() - datetime.now(UTC) - timedelta(hours=2)) < timedelta(seconds=10)
