"""
The contract suite of the archive of the history: with the tables, it is the history that the tables were before.

A test file provides a fixture ``site`` and a class that inherits `ParquetContract`.
"""

from __future__ import annotations

__all__ = ["ParquetContract"]

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import Connection

from app.storage.archive import parquet_manifest
from app.storage.archive.history_content import Decided, HistoryEvent
from app.storage.archive.history_reader import HistoryReader
from app.storage.archive.history_table import HistoryTable
from app.storage.archive.parquet_archive import Archive
from app.storage.archive.parquet_manifest import ArchiveUnusable, Manifest
from app.storage.archive.parquet_writer import HistoryArchiver
from tests.runtime.harness import Harness
from tests.storage.archive_contract import CANCEL, DAY, NO_ANSWER, PAY, happen, place, shop
from tests.storage.history_contract import published
from tests.storage.site import Site

STEPS = (PAY, NO_ANSWER, CANCEL)


def reader_of(harness: Harness, archive: Archive | None) -> HistoryReader:
    """Return the history of all modules of *harness*, with what is in *archive*."""
    histories = {name: (store.database, store.history) for name, store in harness.stores.items()}
    return HistoryReader(histories, harness.clock.now, archive)


async def events_of(reader: HistoryReader, **query: Any) -> list[HistoryEvent]:
    return [event async for part in reader.events(**query) for event in part]


async def decided_of(reader: HistoryReader) -> list[Decided]:
    return [each async for part in reader.transactions() for transaction in part for each in transaction.decisions()]


async def paged(reader: HistoryReader, **query: Any) -> list[HistoryEvent]:
    """Return the events of all pages."""
    found: list[HistoryEvent] = []
    after: int | None = 0
    while after is not None:
        page = await reader.page(**{"after": after, **query})
        found += page.events
        after = page.next_after
    return found


async def archive_closed(harness: Harness, archive: Archive, *, purges: bool = False, kept: timedelta | None = None) -> list[Manifest]:
    """Archive what is closed; return the manifests that were written."""
    archiver = HistoryArchiver(await reader_of(harness, archive).source(*harness.stores), archive, harness.clock.now)
    with archive.lock():
        found = [day.manifest async for day in archiver.archive()]
        if purges:
            _ = [day async for day in archiver.purge(harness.stores, kept)]
    return found


async def counts(harness: Harness) -> list[int]:
    return [(await harness.rows(f"SELECT count(*) FROM {name}_history"))[0][0] for name in harness.stores]


@asynccontextmanager
async def filled(site: Site, days: int = 3, orders: int = 4) -> AsyncIterator[tuple[Harness, Any, list[HistoryEvent]]]:
    """Yield a shop, its clock and its events: *orders* on each of *days*, the last of which is not closed."""
    async with shop(site.url) as (harness, clock):
        for day in range(days):
            for n in range(orders):
                id = await place(harness, day * orders + n)
                await happen(harness, id, (STEPS[n % 3],))
                await clock.advance(60)
            if day < days - 1:
                await clock.advance(DAY)
        yield harness, clock, list(await published(harness))


class _Interrupted(Archive):
    """An archive for which *work*, in another process, happens before call *n*."""

    def __init__(self, folder: Path, n: int, work: Callable[[Archive], Any]) -> None:
        super().__init__(folder)
        folder.mkdir()
        self._n, self._work = n, work
        self.calls = 0

    async def call(self, function: Callable[[], Any]) -> Any:
        self.calls += 1
        if self.calls == self._n:
            await self._work(Archive(self.folder))
        return await super().call(function)


class ParquetContract:
    """The suite; inherit it and provide a fixture ``site``."""

    async def test_archive_and_tables_together_are_what_the_tables_were(
        self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Events, decisions and pages, from any event on and of any module, before and after a purge, through row groups and days."""
        monkeypatch.setattr("app.storage.archive.parquet_files.GROUP_BYTES", {"rows": 900, "events": 900})
        monkeypatch.setattr("app.storage.archive.parquet_files.PART_BYTES", 2_000)
        monkeypatch.setattr("app.storage.archive.parquet_writer.PURGED_MAX", 2)
        async with filled(site) as (harness, clock, whole):
            decided = await decided_of(reader_of(harness, None))
            archive = Archive(tmp_path / "archive")
            for purges in (False, True):
                written = await archive_closed(harness, archive, purges=purges)
                assert {str(each.day) for each in written} == (set() if purges else {"2026-01-01", "2026-01-02"})
                reader = reader_of(harness, archive)
                assert await events_of(reader) == whole
                assert await decided_of(reader) == decided
                for limit in (1, 5):
                    assert await paged(reader, limit=limit) == whole
                for event in whole[::5]:
                    assert await events_of(reader, after=event.seq) == [each for each in whole if each.seq > event.seq]
                for name in harness.stores:
                    of_module = [each for each in whole if each.module == name]
                    assert await events_of(reader, module=name) == await paged(reader, module=name, limit=3) == of_module
                bounds = await reader.bounds()
                assert bounds is not None
                assert bounds[0] <= whole[0].seq >> 17 <= whole[-1].seq >> 17 <= bounds[1]
            assert len([*(tmp_path / "archive" / "rows").rglob("*.parquet")]) > 6, "a day has several files"
            only_tables = await events_of(reader_of(harness, None))
            assert only_tables == whole[-len(only_tables) :] != whole, "without the archive: what was not purged, and no error"
            await clock.advance(2 * DAY)
            await archive_closed(harness, archive, purges=True)
            assert await events_of(reader_of(harness, archive)) == whole
            assert await counts(harness) == [1, 1, 1]
            id = await place(harness, 99)
            assert (await events_of(reader_of(harness, archive)))[len(whole)].key == id, "numbers go on"

    async def test_the_files_of_events_have_what_was_published(self, site: Site, tmp_path: Path) -> None:
        """Other engines see the same events, with typed columns; module and day are in the path."""
        async with filled(site) as (harness, clock, whole):
            await clock.advance(2 * DAY)
            await archive_closed(harness, Archive(tmp_path))
            found = pq.read_table(tmp_path / "events").to_pylist()
            shown = sorted(
                (each["seq"], str(each["module"]), each["event_id"], each["cause_id"], each["correlation_id"], each["subject"], each["key"],
                 each["at"].isoformat(timespec="microseconds"), json.loads(each["data"]))
                for each in found
            )  # fmt: skip
            assert shown == [
                (e.seq, e.module, e.event_id, e.cause_id, e.correlation_id, e.subject, e.key, e.at, e.data) for e in whole
            ]
            assert {(str(each["day"]), each["at"].date().isoformat()) for each in found} == {
                (f"2026-01-0{n}", f"2026-01-0{n}") for n in (1, 2, 3)
            }

    async def test_an_interrupted_run_is_continued(self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It can end before or after each write to the disk; the next run finishes, and nothing is there twice."""
        async with filled(site, days=3, orders=2) as (harness, _, whole):
            left_over = tmp_path / "archive" / "events" / "module=orders" / "day=2026-01-02" / "part-0007.parquet"
            left_over.parent.mkdir(parents=True)
            left_over.write_bytes(b"of a run that was interrupted")
            with pytest.raises(ArchiveUnusable, match=f"{left_over}: no manifest has it"):
                Archive(tmp_path / "archive").require_listed()
            sync = parquet_manifest.sync_folder
            for n in range(1_000):
                archive, left = Archive(tmp_path / "archive"), n // 8

                def interrupted(path: Path) -> None:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        raise KeyboardInterrupt
                    sync(path)

                for module in ("parquet_manifest", "parquet_files"):
                    monkeypatch.setattr(f"app.storage.archive.{module}.sync_folder", interrupted)
                try:
                    await archive_closed(harness, archive)
                except KeyboardInterrupt:
                    assert await self._reads(harness, archive, whole)
                    continue
                break
            assert n > 20
            assert await self._reads(harness, archive, whole)
            for found in archive.archives().modules.values():
                assert [str(each.day) for each in found.manifests] == ["2026-01-01", "2026-01-02"]
                for manifest in found.manifests:
                    archive.verify(manifest)
            assert not [*(tmp_path / "archive").rglob("*.tmp")]
            archive.require_listed()

    async def _reads(self, harness: Harness, archive: Archive, whole: Sequence[HistoryEvent]) -> bool:
        return await events_of(reader_of(harness, archive)) == whole

    async def test_a_reader_misses_nothing_while_days_are_archived_and_purged(
        self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whenever that happens while it reads: it looks again if a day was archived since it has looked."""
        monkeypatch.setattr("app.storage.archive.history_reader.READ_MAX", 4)
        names = ("orders", "inventory", "payments")

        def save(connection: Connection) -> None:
            for name in names:
                connection.exec_driver_sql(f"CREATE TABLE saved_{name} AS SELECT * FROM {name}_history")

        def restore(connection: Connection) -> None:
            for name in names:
                connection.exec_driver_sql(f"DELETE FROM {name}_history")
                connection.exec_driver_sql(f"INSERT INTO {name}_history SELECT * FROM saved_{name}")

        async with filled(site, days=3, orders=2) as (harness, _, whole):
            await harness.database.write(save)
            found, calls = 0, 1
            while found < calls:  # the interruption comes before each call in turn, until there is no such call
                found += 1
                archive = _Interrupted(tmp_path / str(found), found, partial(archive_closed, harness, purges=True))
                assert await events_of(reader_of(harness, archive)) == whole, f"interrupted at {found}"
                calls = archive.calls
                await harness.database.write(restore)
            assert calls > 8

    async def test_what_comes_late_for_a_closed_day_is_part_of_the_next(self, site: Site, tmp_path: Path) -> None:
        """A clock that is behind, and one that was ahead: no row is left out, and none is there twice."""
        async with filled(site, days=2) as (harness, clock, _):
            archive = Archive(tmp_path)
            await archive_closed(harness, archive)
            for n in range(3):
                await place(harness, 50 + n)
            numbers = [number for (number,) in await harness.rows("SELECT number FROM orders_history ORDER BY number DESC LIMIT 3")]
            moments = ("2026-01-01T10:00:00.000000+00:00", "2030-01-01T10:00:00.000000+00:00")

            def set_back(connection: Connection) -> None:
                for name in harness.stores:
                    for number, at in zip(numbers[1:], moments, strict=True):
                        sql = harness.database.dialect.to_driver_sql(f"UPDATE {name}_history SET at = ? WHERE number = ?")
                        connection.exec_driver_sql(sql, (at, number))

            await harness.database.write(set_back)
            whole = await published(harness)
            assert {each.at for each in whole} >= {*moments}
            await clock.advance(2 * DAY)
            written = await archive_closed(harness, archive, purges=True)
            assert {str(each.day) for each in written} == {"2026-01-02"}
            assert await events_of(reader_of(harness, archive)) == whole
            await clock.advance(5 * 366 * DAY)
            assert await archive_closed(harness, archive, purges=True) == []
            assert await events_of(reader_of(harness, archive)) == whole

    async def test_a_day_is_closed_an_hour_after_its_end(self, site: Site, tmp_path: Path) -> None:
        """A transaction that began before midnight has long been finished."""
        async with shop(site.url) as (harness, clock):
            await place(harness)
            archive = Archive(tmp_path)
            for seconds, closed in ((12 * 3600 + 3590, 0), (20, 3)):
                await clock.advance(seconds)
                assert len(await archive_closed(harness, archive)) == closed

    async def test_only_days_older_than_the_age_are_purged(self, site: Site, tmp_path: Path) -> None:
        """HISTORY_KEPT is the age; the rest stays in the tables, too."""
        async with filled(site, days=5, orders=1) as (harness, _, whole):
            archive = Archive(tmp_path)
            await archive_closed(harness, archive, purges=True, kept=timedelta(days=2))
            days = {str(at)[:10] for (at,) in await harness.rows("SELECT at FROM orders_history WHERE length(content) > 3")}
            assert days == {"2026-01-03", "2026-01-04", "2026-01-05"}
            assert await events_of(reader_of(harness, archive)) == whole

    @pytest.mark.parametrize("dataset", ["rows", "events"])
    async def test_nothing_is_purged_whose_file_is_damaged(self, site: Site, tmp_path: Path, dataset: str) -> None:
        """Each file is compared with its hash just before; one bit is enough."""
        async with filled(site, days=2) as (harness, _, whole):
            archive = Archive(tmp_path)
            await archive_closed(harness, archive)
            before = await counts(harness)
            path = next((tmp_path / dataset / "module=payments").rglob("*.parquet"))
            content = bytearray(path.read_bytes())
            content[len(content) // 3] ^= 1
            path.write_bytes(content)
            with pytest.raises(ArchiveUnusable, match=rf"{path}: its SHA-256 differs .* restore it from a copy"):
                await archive_closed(harness, archive, purges=True)
            assert await counts(harness) == before
            assert await events_of(reader_of(harness, None)) == whole

    async def test_nothing_is_purged_that_the_archive_does_not_have(self, site: Site, tmp_path: Path) -> None:
        """More rows in the table than in the archive: something was inserted among them."""
        async with filled(site, days=2) as (harness, _, _whole):
            archive = Archive(tmp_path)
            await archive_closed(harness, archive)
            await harness.database.write(
                lambda c: c.exec_driver_sql("INSERT INTO payments_history SELECT number - 1, at, content FROM payments_history WHERE number = 2")
            )
            before = await counts(harness)
            with pytest.raises(ArchiveUnusable, match="nothing was deleted"):
                await archive_closed(harness, archive, purges=True)
            assert await counts(harness) == before

    async def test_the_archive_of_another_database_is_refused(self, site: Site, tmp_path: Path) -> None:
        """Also one that was restored from an older backup, and a copy of the archive that lacks the days that were purged."""
        async with filled(site, days=3) as (harness, clock, _):
            archive = Archive(tmp_path)
            await archive_closed(harness, archive, purges=True)
            last = {name: found.manifests[-1] for name, found in archive.archives().modules.items()}
            for name, manifest in last.items():
                parquet_manifest.manifest_path(tmp_path, name, manifest.day).unlink()
            with pytest.raises(ArchiveUnusable, match="newer days are missing"):
                await events_of(reader_of(harness, archive))
            for manifest in last.values():
                parquet_manifest.write_manifest(tmp_path, manifest)
            await harness.database.write(lambda c: c.exec_driver_sql("DELETE FROM orders_history"))
            for use in (events_of(reader_of(harness, archive)), archive_closed(harness, archive)):
                with pytest.raises(ArchiveUnusable, match="is the last day of orders"):
                    await use
            await clock.advance(1)

    async def test_a_transaction_without_its_producer_is_archived_and_stays_an_error(self, site: Site, tmp_path: Path) -> None:
        """The row of the producer was deleted before; the archive is as complete as the tables were."""
        async with filled(site, days=2) as (harness, _, _whole):
            await harness.database.write(
                lambda c: c.exec_driver_sql("DELETE FROM orders_history WHERE number = (SELECT min(number) FROM orders_history)")
            )
            archive = Archive(tmp_path)
            written = await archive_closed(harness, archive)
            assert sum(each.incomplete for each in written) == 2
            for reader in (reader_of(harness, archive), reader_of(harness, None)):
                with pytest.raises(ValueError, match="refers to an event that no history in this database has") as error:
                    await events_of(reader)
                after = int(str(error.value).rpartition(" ")[2])
                found = await events_of(reader, after=after)
                assert len(found) > 10

    @pytest.mark.parametrize("is_plain", [False, True])
    async def test_a_damaged_row_is_named_and_what_comes_before_it_is_read(self, site: Site, tmp_path: Path, is_plain: bool) -> None:
        """It is not archived: it would be missing there."""
        async with filled(site, days=2) as (harness, _, whole):
            table: HistoryTable = harness.stores["inventory"].history
            number = whole[9].seq >> 17
            content = b"\x01[[1]]" if is_plain else b"\x02torn"
            sql = harness.database.dialect.to_driver_sql(f"UPDATE {table.name} SET content = ? WHERE number = ?")
            await harness.database.write(lambda c: c.exec_driver_sql(sql, (content, number)))
            seen: list[HistoryEvent] = []
            with pytest.raises(ValueError, match=f"row {number} of inventory_history cannot be read"):
                await self._collect(reader_of(harness, None), seen)
            assert seen == [each for each in whole if each.seq >> 17 < number]
            with pytest.raises(ValueError, match=f"row {number} of inventory_history cannot be read"):
                await paged(reader_of(harness, None))
            with pytest.raises(ValueError, match=f"row {number} of inventory_history cannot be read"):
                await archive_closed(harness, Archive(tmp_path))

    async def _collect(self, reader: HistoryReader, found: list[HistoryEvent]) -> None:
        async for part in reader.events():
            found += part
