"""The order in which the archiver goes through what a module has, and how much of the time it takes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from app.runtime.archiver import OUTAGE_SECONDS, PAUSE_SECONDS, SHARE_MAX, SWEEP_SECONDS, Archiver
from app.storage.archive.state_archive import Swept
from app.storage.errors import StorageUnavailable
from app.telemetry.metrics import Metrics
from tests.clock import VirtualClock

KEPT = timedelta(days=3)
SKIPPED = timedelta(hours=5)
KEYS = {"state": ["a", "b", "c", "d", "e"], "letter": ["A", "B", "C"]}
"""By kind. The keys of the second are smaller than those of the first."""

FINISHED = "bC"
"""Pages with none of them have nothing to move, and what follows has."""


class Tables:
    """Pages of two keys of each kind; a look fails once where the test wants it."""

    def __init__(self) -> None:
        self.looks: list[tuple[str, str]] = []
        self.before: set[datetime] = set()
        self.fails: dict[tuple[str, str], Exception] = {}

    def sweep(self, kind: str) -> Callable[[Any, str, datetime], Swept]:
        def sweep(connection: Any, after: str, before: datetime) -> Swept:
            self.looks.append((kind, after))
            self.before.add(before)
            if error := self.fails.pop((kind, after), None):
                raise error
            page = [key for key in KEYS[kind] if key > after][:2]
            return Swept([key for key in page if key in FINISHED], page[-1] if len(page) == 2 else None)

        return sweep


WHOLE = [("state", ""), ("state", "b"), ("state", "d"), ("letter", ""), ("letter", "B")]


async def write(work: Any, order_key: str) -> Any:
    return work(None)


@pytest.fixture
def tables() -> Tables:
    return Tables()


@pytest.fixture
def archiver(tables: Tables) -> Archiver:
    store: Any = SimpleNamespace(
        module=SimpleNamespace(name="orders"),
        database=SimpleNamespace(write=write),
        heartbeat=SimpleNamespace(skipped=lambda connection, now: SKIPPED),
    )
    return Archiver(store, {kind: tables.sweep(kind) for kind in KEYS}, KEPT, VirtualClock(), Metrics())


async def test_each_sweep_goes_through_all_rows_of_each_kind(archiver: Archiver, tables: Tables) -> None:
    """Each kind from its first key on, whatever the last key of the kind before was; and then all over again."""
    for _ in range(2):
        pauses = [await archiver.step() for _ in WHOLE]
        assert [pause == SWEEP_SECONDS for pause in pauses] == [False] * (len(WHOLE) - 1) + [True]
    assert tables.looks == WHOLE * 2
    assert tables.before == {VirtualClock().now() - KEPT - SKIPPED}


async def test_an_outage_costs_a_sweep_only_time(archiver: Archiver, tables: Tables) -> None:
    """It goes on where it was."""
    tables.fails = {("state", "b"): StorageUnavailable("gone"), ("letter", "B"): StorageUnavailable("gone")}
    pauses = [await archiver.step() for _ in range(len(WHOLE) + 2)]
    assert (pauses.count(OUTAGE_SECONDS), pauses[-1]) == (2, SWEEP_SECONDS)
    assert tables.looks == [*WHOLE[:2], *WHOLE[1:], WHOLE[-1]]


@pytest.mark.parametrize("where", WHOLE)
async def test_a_row_that_cannot_be_read_keeps_only_its_own_kind(archiver: Archiver, tables: Tables, where: tuple[str, str]) -> None:
    """In each sweep the rows of its kind before it are moved, and those of the other kinds; once it can be read, all are."""
    reached = [each for each in WHOLE if each[0] != where[0] or each <= where]
    for _ in range(2):
        tables.fails = {where: ValueError("damaged")}
        while await archiver.step() < SWEEP_SECONDS:
            pass
    assert tables.looks == reached * 2
    tables.looks.clear()
    while await archiver.step() < SWEEP_SECONDS:
        pass
    assert tables.looks == WHOLE


@pytest.mark.parametrize(("seconds", "pause"), [(0.0, PAUSE_SECONDS), (0.2, 0.2 / SHARE_MAX - 0.2), (2.0, 18.0)])
async def test_it_pauses_for_as_long_as_its_share_of_the_time_requires(
    archiver: Archiver, monkeypatch: pytest.MonkeyPatch, seconds: float, pause: float
) -> None:
    """A slow disk makes it slower."""
    times = iter([0.0, seconds])
    monkeypatch.setattr("app.runtime.archiver.time.perf_counter", lambda: next(times))
    assert await archiver.step() == pytest.approx(pause)
