"""Taking a history out of its archive, by columns, gives the file that the rows of the tables give, and the same errors."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.analytics.analytics_file import AnalyticsFile, Position
from app.analytics.ingest import Ingest
from app.analytics.projections.declaration import load
from app.analytics.projections.views import create_views
from app.analytics.sources import history
from app.analytics.sources.ahead import ReadAhead
from app.analytics.sources.history import HistorySource
from app.analytics.sources.rows import RowEvents
from app.analytics.sources.source import Batch
from app.storage.archive.history_content import PLAIN, HistoryIncomplete
from app.storage.archive.history_reader import HistoryReader
from app.storage.archive.parquet_archive import Archive
from app.storage.archive.parquet_manifest import ArchiveUnusable
from app.storage.state_rows import to_db_timestamp
from tests.analytics.events import CONTRACTS, example
from tests.runtime.harness import Harness
from tests.storage.archive_contract import DAY, FINISHED, UNFINISHED, happen, place, shop
from tests.storage.parquet_contract import archive_closed, reader_of

ODD: tuple[tuple[bool, str, Mapping[str, Any]], ...] = (
    (False, "orders.created.v1", {}),
    (True, "orders.created.v1", {"customer_id": "Zoë\u2028"}),
    (True, "orders.created.v2", {}),
    (False, "orders.created.v2", {"customer_id": None}),
    (False, "orders.created.v9", {}),
    (False, "orders.moved.v1", {}),
)
"""Lane, subject and some members of events that no release publishes together: older versions, unknown and damaged ones."""


def write(path: Path, at: str, causes: str) -> None:
    """Write a transaction of orders that has published `ODD`, each because of an event with an id that begins with *causes*."""
    entries = []
    for position, (is_express, subject, members) in enumerate(ODD):
        data = {**(example(subject) if subject in CONTRACTS else {"order_id": "o"}), **members}
        id = f"{causes}-{position}"
        entries.append(["s", "Odd", id, "corr", is_express, {"order_id": "o"}, is_express, "o", [[position, 0, subject, data]]])
    union = " UNION ALL ".join(f"SELECT max(number) AS last FROM {name}_history" for name in ("orders", "inventory", "payments"))
    with closing(sqlite3.connect(path)) as connection, connection:
        (number,) = connection.execute(f"SELECT max(last) FROM ({union})").fetchone()
        connection.execute("INSERT INTO orders_history VALUES (?, ?, ?)", (number + 1, at, PLAIN + orjson.dumps(entries)))


@pytest.fixture
async def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Harness, Archive]]:
    """A shop after four days, three of which are archived in many small row groups, and the archive."""
    monkeypatch.setattr("app.storage.archive.parquet_files.GROUP_BYTES", {"rows": 2_000, "events": 2_000})
    monkeypatch.setattr("app.storage.archive.parquet_files.PART_BYTES", 20_000)
    flows = [*FINISHED.values(), *(events for events, _ in UNFINISHED.values())]
    path = tmp_path / "fulfilment.db"
    async with shop(path) as (harness, clock):
        for day in range(4):
            late = clock.now() - timedelta(days=1, hours=2)
            write(path, to_db_timestamp(late if day == 2 else clock.now()), f"odd-{day % 3}")  # day 3 repeats day 0
            for n, events in enumerate(flows[day % 2 :: 2]):
                await happen(harness, await place(harness, day * 100 + n), events)
            await place(harness, day * 100 + 99, quantity=500)  # more than there is
            await clock.advance(DAY if day < 3 else 60)
        archive = Archive(tmp_path / "archive")
        assert len({each.day for each in await archive_closed(harness, archive)}) == 3
        yield harness, archive


def refused(*_: object, **__: object) -> None:
    """Stand in for what must not be called."""
    raise AssertionError


Content = dict[str, list[Any]]


async def content(reader: HistoryReader, path: Path | None = None) -> Content:
    """Take what *reader* has, and return the rows of all tables and projections."""
    with closing(AnalyticsFile(path, CONTRACTS)) as file:
        create_views(file.connection, load())
        ahead = ReadAhead(HistorySource("history", reader))
        try:
            await Ingest(file, [ahead], lambda _: None).run(once=True)
        finally:
            await ahead.close()
        names = [name for (name,) in file.connection.execute("SELECT table_name FROM information_schema.tables").fetchall()]
        found = {name: file.connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}
    found["analytics_sources"] = [row[:-1] for row in found["analytics_sources"]]  # without the time
    del found["analytics_format"]
    return {name: sorted(rows, key=repr) for name, rows in found.items()}


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.slow), 10_000])
async def test_the_archive_gives_the_file_that_the_tables_give(
    filled: tuple[Harness, Archive], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Every column of every event, what cannot be read, and every projection; in batches of any size, and after a purge."""
    harness, archive = filled
    expected = await content(reader_of(harness, None))
    assert len(expected["orders_created"]) > 30
    assert len(expected["payments_refunded"]) > 5
    assert {row[5] for row in expected["unreadable_events"]} == {"orders.created.v2", "orders.created.v9", "orders.moved.v1"}
    monkeypatch.setattr(history, "EVENTS_MAX", count)
    await archive_closed(harness, archive, purges=True)
    assert await content(reader_of(harness, archive)) == expected


async def test_archived_events_are_read_by_column(filled: tuple[Harness, Archive], monkeypatch: pytest.MonkeyPatch) -> None:
    """No row of an archived day is decoded."""
    harness, archive = filled
    await archive_closed(harness, archive, purges=True)
    reader = reader_of(harness, archive)
    archived = [each async for part in reader.events() for each in part if each.at < "2026-01-04"]

    monkeypatch.setattr(archive, "rows", refused)
    source = HistorySource("history", reader)
    batch = await source.read({})
    assert batch is not None
    assert sorted(batch.events.table["event_id"].to_pylist()) == sorted(each.event_id for each in archived)
    assert not batch.is_last


@pytest.mark.slow
async def test_events_in_the_tables_are_read_by_column(filled: tuple[Harness, Archive], monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is decoded, and the file is the same as if all were; in batches of any size."""
    harness, _ = filled
    found = []
    for count, is_by_column in ((10_000, True), (10, True), (10_000, False)):
        with monkeypatch.context() as patch:
            patch.setattr(history, "EVENTS_MAX", count)
            if is_by_column:
                patch.setattr(HistoryReader, "events", refused)
            else:
                patch.setattr(RowEvents, "events", lambda *_: None)
            found.append(await content(reader_of(harness, None)))
    assert found[0] == found[1] == found[2]


async def test_what_was_not_stored_is_read_again(filled: tuple[Harness, Archive], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read ahead is dropped if the batch before it is not stored; a stop ends the reading."""
    monkeypatch.setattr(history, "EVENTS_MAX", 10)
    harness, archive = filled
    ahead = ReadAhead(HistorySource("history", reader_of(harness, archive)))

    async def read(position: Position | None = None) -> Batch:
        batch = await ahead.read({} if position is None else {"history": position})
        assert batch is not None
        return batch

    first = await read()
    second = await read(first.position)
    again = await read(first.position)
    assert (again.position, again.events) == (second.position, second.events)
    assert (await read()).position == first.position
    await ahead.close()
    assert len(asyncio.all_tasks()) == 1


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def _gone(path: Path) -> None:
    path.unlink()


def _replaced(path: Path) -> None:
    """Give the manifest of the file the size and the hash of another file: only the rows differ."""
    manifests = path.parents[3] / "manifests" / path.parent.parent.name.partition("=")[2]
    manifest = manifests / f"{path.parent.name.partition('=')[2]}.json"
    document = orjson.loads(manifest.read_bytes())
    for parts in (document["rows"], document["events"]):
        parts[0]["count"] += 1
    manifest.write_bytes(orjson.dumps(document))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "reason"),
    [(_torn, "has [0-9]+ bytes, and its manifest [0-9]+; restore it from a copy"), (_damaged, "is damaged"),
     (_gone, "does not exist, but its"),
     (_replaced, "has other rows than its manifest; restore both from a copy")],
)  # fmt: skip
async def test_a_wrong_file_is_the_same_error_by_row_and_by_column(
    filled: tuple[Harness, Archive], monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None], reason: str
) -> None:
    """It names the file and what to do; what comes before it is taken, and nothing is left out."""
    monkeypatch.setattr(history, "EVENTS_MAX", 50)
    harness, archive = filled
    for dataset in ("rows", "events"):
        harm(next((archive.folder / dataset / "module=orders").rglob("day=2026-01-02/part-0001.parquet")))
    reader = reader_of(harness, Archive(archive.folder))
    with pytest.raises(ArchiveUnusable, match=f"rows/.*/day=2026-01-02/part-0001.parquet: {reason}"):
        _ = [part async for part in reader.events()]
    path = archive.folder.parent / "analytics.duckdb"
    with pytest.raises(ArchiveUnusable, match=f"events/.*/day=2026-01-02/part-0001.parquet: {reason}"):
        await content(reader, path)
    with closing(AnalyticsFile(path, CONTRACTS)) as file:
        (position,) = file.positions().values()
        (last,) = file.connection.execute("SELECT max(occurred_at)::DATE::VARCHAR FROM orders_created").fetchall()[0]
    assert position.position > 0
    assert last == "2026-01-01"


@pytest.mark.slow
async def test_a_transaction_without_its_producer_is_the_same_error(filled: tuple[Harness, Archive], tmp_path: Path) -> None:
    """The files of events leave it out; so that day is read by row, which reports it, after everything before it is taken."""
    harness, _ = filled
    refers = "SELECT 1 FROM inventory_history AS other WHERE other.number = orders_history.number"
    (number,) = (await harness.rows(f"SELECT min(number) FROM orders_history WHERE at >= '2026-01-02' AND EXISTS ({refers})"))[0]
    await harness.database.write(lambda c: c.exec_driver_sql(f"DELETE FROM orders_history WHERE number = {number}"))
    archive = Archive(tmp_path / "incomplete")
    assert sum(manifest.incomplete for manifest in await archive_closed(harness, archive)) > 0
    positions = []
    for kind, reader in (("tables", reader_of(harness, None)), ("archive", reader_of(harness, archive))):
        path = tmp_path / f"{kind}.duckdb"
        with pytest.raises(HistoryIncomplete, match=f"transaction {number} of .* refers to an event that no history"):
            await content(reader, path)
        with closing(AnalyticsFile(path, CONTRACTS)) as file:
            positions.append(file.positions())
    assert positions[0] == positions[1] != {}
