"""The clock of a process, compared with the machine's while it runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from app import clock as clock_module
from app.clock import SystemClock
from app.storage.clock_watch import SKEW_MAX, ClockWatch
from tests.clock import VirtualClock


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


@pytest.mark.parametrize(
    ("by", "is_followed"),
    [
        (timedelta(hours=2), True), (-timedelta(hours=2), True),
        (SKEW_MAX + timedelta(seconds=9), True), (-SKEW_MAX - timedelta(seconds=9), True),
        (SKEW_MAX - timedelta(seconds=9), False), (timedelta(seconds=9) - SKEW_MAX, False),
    ],
)  # fmt: skip
async def test_the_clock_of_a_database_server_is_followed(by: timedelta, is_followed: bool) -> None:
    """In either direction: all replicas of a module share that clock. A small difference does no harm."""

    async def write(work: Any) -> str:
        return (datetime.now(UTC) + by).isoformat()

    database: Any = SimpleNamespace(dialect=SimpleNamespace(now_sql=lambda: "now()"), write=write)
    clock = SystemClock()
    watch = ClockWatch({}, clock, timedelta(minutes=10))
    await watch._adjust_to(database)
    assert abs(clock.now() - datetime.now(UTC) - (by if is_followed else timedelta(0))) < timedelta(seconds=5)
    assert ("the database server's clock is" in watch.problem) == is_followed
    assert (("ahead" if by > timedelta(0) else "behind") in watch.problem) == is_followed


@pytest.mark.parametrize(("by", "moved", "is_shown"), [(-1, 0, True), (-1, 3, True), (1, 0, False), (1, 3, True), (0, 0, False)])
async def test_a_jump_is_shown_for_as_long_as_the_limit(by: int, moved: int, is_shown: bool) -> None:
    """If it went back, or has moved a timer: a stop in which no order was open is of no interest."""
    jumps: list[tuple[timedelta, int]] = []
    found = timedelta(hours=by), moved

    async def write(work: Any) -> Any:
        return found

    heartbeat = SimpleNamespace(resume=None, last_beat=None)
    dialect = SimpleNamespace(now_sql=lambda: None, is_shared=False)
    store: Any = SimpleNamespace(database=SimpleNamespace(write=write, dialect=dialect), heartbeat=heartbeat)
    clock = VirtualClock()
    watch = ClockWatch({"orders": store}, clock, timedelta(minutes=10), lambda by, moved: jumps.append((by, moved)))
    heartbeat.resume = lambda connection, now, limit: found
    await watch.start()
    assert jumps == ([found] if by else [])
    assert bool(watch.problem) == is_shown
    await clock.advance(599)
    assert bool(watch.problem) == is_shown
    await clock.advance(2)
    assert watch.problem == ""
