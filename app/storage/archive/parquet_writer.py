"""
Archive the closed days of the histories in one database, and delete from the tables what is safely archived.

A day is closed an hour after its end. It then ends with the greatest number among its rows: that limit is the same for all modules
of the database, so a transaction is archived whole. What is committed later, with a time of that day, is part of the next.

It can end at any point. A day without a manifest is written again from its beginning, up to the limit that another module's
manifest of the day already has.
"""

from __future__ import annotations

__all__ = ["ArchivedDay", "HistoryArchiver"]

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from functools import partial

import orjson
from attrs import frozen
from sqlalchemy import Connection

from app.clock import SystemClock
from app.storage.archive.history_content import HistoryEvent, HistoryIncomplete, Row
from app.storage.archive.history_source import HistorySource, Transaction
from app.storage.archive.history_table import PURGE_MARGIN
from app.storage.archive.parquet_archive import Archive, ArchivedHistory
from app.storage.archive.parquet_files import DatasetWriter
from app.storage.archive.parquet_manifest import ArchiveUnusable, Manifest, write_manifest

FETCHED_MAX, FETCHED_BYTES = 512, 2**20
"""Transactions, and bytes as stored, that are read at once."""

PURGED_MAX = 200
"""Rows of a table that one transaction deletes: a running server waits for it."""

_DAY = timedelta(days=1)


@frozen
class ArchivedDay:
    """One day of one module that was archived, or of which *purged* rows were deleted from the database."""

    manifest: Manifest
    purged: int = 0


class HistoryArchiver:
    """Archives what *source* has into *archive*, whose lock the caller holds."""

    def __init__(self, source: HistorySource, archive: Archive, now: Callable[[], datetime] = SystemClock().now) -> None:
        self._source, self._archive, self._now = source, archive, now

    async def archive(self) -> AsyncIterator[ArchivedDay]:
        """
        Archive all days that are closed and not in the archive; yield each module's part of a day once it is archived.

        Raises:
            StorageUnavailable: The database is out of reach.
            HistoryDamaged: A row cannot be read; it would be missing in the archive.
            ArchiveUnusable: The archive cannot be read or written, or belongs to another database.
        """
        finished = await self._source.last_finished()
        while (limit := await self._next_limit(finished)) is not None:
            day, through = limit
            for manifest in await self._write(day, through):
                yield ArchivedDay(manifest)

    async def purge(self, modules: Iterable[str], kept: timedelta | None) -> AsyncIterator[ArchivedDay]:
        """
        Delete the archived rows of *modules* from their tables; yield each day once it is verified and deleted.

        The last archived row of a module stays, without its content: numbers go on from it, and it shows where the archive ends.
        With *kept*, only days that are older are deleted.

        Raises:
            StorageUnavailable: The database is out of reach, or does not permit it.
            ArchiveUnusable: A file differs from its manifest, or a table has more rows of a day than the archive.
        """
        archives = await self._archive.call(self._archive.archives)
        await self._source.check(archives)
        chosen = sorted(modules)
        through = min(archives.of(name).through for name in self._source.tables)
        before = None if kept is None else (self._now() - kept).date()
        days = sorted({each.day for name in chosen for each in archives.of(name).manifests if each.through <= through})
        for day in days:
            if before is not None and day >= before:
                return
            found = {name: each for name in chosen for each in archives.of(name).manifests if each.day == day}
            counts = await self._source.database.read(partial(self._counts, found))
            stored = {name: manifest for name, manifest in found.items() if counts[name]}
            for name, manifest in stored.items():
                if counts[name] > manifest.row_count:
                    raise ArchiveUnusable(
                        f"{self._archive.folder}: has {manifest.row_count} rows of {name} on {day}, and the database {counts[name]};"
                        " nothing was deleted: is it the archive of this database?"
                    )
                await self._archive.call(partial(self._archive.verify, manifest))
            await self._purge(stored)
            for name, manifest in stored.items():
                yield ArchivedDay(manifest, counts[name])

    async def _next_limit(self, finished: int) -> tuple[date, int] | None:
        """Return the next day to archive and its last number; None if no further day is closed."""
        archives = await self._archive.call(self._archive.archives)
        await self._source.check(archives)
        found = [archives.of(name) for name in self._source.tables]
        done = min(each.through for each in found)
        begun = [manifest for each in found for manifest in each.manifests if manifest.through > done]
        if begun:
            manifest = min(begun, key=lambda each: each.through)
            return manifest.day, manifest.through
        last = max((each.manifests[-1].day for each in found if each.manifests), default=None)
        return await self._source.database.read(partial(self._closed_day, last, done, finished))

    def _closed_day(self, last: date | None, done: int, finished: int, connection: Connection) -> tuple[date, int] | None:
        tables = self._source.tables.values()
        since = datetime(1, 1, 1, tzinfo=UTC) if last is None else _start(last) + _DAY
        while True:
            moments = [at for table in tables if (at := table.first_since(connection, since)) is not None]
            if not moments:
                return None
            start = _start(min(moments).date())
            if start + _DAY + PURGE_MARGIN > self._now():
                return None
            through = max(table.last_between(connection, start, start + _DAY, finished) for table in tables)
            if through > done:
                return start.date(), through
            since = start + _DAY

    async def _write(self, day: date, through: int) -> list[Manifest]:
        """Write *day*, which ends with number *through*, of all modules that do not have it; return their manifests."""
        archives = await self._archive.call(self._archive.archives)
        missing = {name: archives.of(name) for name in self._source.tables if archives.of(name).through < through}
        writers = {name: _ModuleWriter(self._archive, name, day, history) for name, history in missing.items()}
        number: int | None = min(history.through for history in missing.values()) + 1
        try:
            while number is not None:
                fetched = await self._source.fetch(number, through, FETCHED_MAX, FETCHED_BYTES)
                for transaction in fetched.transactions:
                    _add(writers, transaction)
                number = fetched.next_number
            return [writer.close(through) for writer in writers.values()]
        except BaseException:  # also a cancellation: what is not complete would stay on the disk until the next run
            for writer in writers.values():
                writer.abort()
            raise

    def _counts(self, manifests: Mapping[str, Manifest], connection: Connection) -> dict[str, int]:
        """Return the rows that each table has of a day, but not the one that stays."""
        found = {}
        for name, manifest in manifests.items():
            table = self._source.tables[name]
            found[name] = table.count(connection, manifest.after, manifest.through)
            if found[name] == 1 and table.is_emptied(connection, manifest.last_number):
                found[name] = 0
        return found

    async def _purge(self, manifests: Mapping[str, Manifest]) -> None:
        """Delete all rows up to the last of *manifests*, and the content of that."""
        lasts = {self._source.tables[name]: each.last_number for name, each in manifests.items() if each.last_number is not None}
        is_done = not lasts
        while not is_done:

            def delete(connection: Connection) -> bool:
                # The rows of one transaction are deleted in one: a reader without the archive sees all of them, or none.
                nexts = [table.nth_before(connection, last, PURGED_MAX) for table, last in lasts.items()]
                limit = min((number for number in nexts if number is not None), default=None)
                for table, last in lasts.items():
                    table.delete_before(connection, min(last, limit or last))
                    if limit is None:
                        table.empty(connection, last)
                return limit is None

            is_done = await self._source.database.write(delete)


class _ModuleWriter:
    """Writes one day of one module."""

    def __init__(self, archive: Archive, module: str, day: date, history: ArchivedHistory) -> None:
        self._archive, self._module, self._day = archive, module, day
        self.after = history.through
        self._last = history.last
        self._incomplete = 0
        self._rows, self._events = (DatasetWriter(archive.folder, dataset, module, day.isoformat()) for dataset in ("rows", "events"))

    def add_row(self, row: Row) -> None:
        content = orjson.dumps(row.entries)
        self._rows.add((row.number, row.at, content), len(content))
        self._last = row.number, row.at

    def add_event(self, event: HistoryEvent) -> None:
        data = orjson.dumps(event.data)
        values = (event.seq, event.event_id, event.cause_id, event.correlation_id, event.subject, event.key, event.at, data)
        self._events.add(values, len(data) + 200)

    def note_incomplete(self) -> None:
        self._incomplete += 1

    def close(self, through: int) -> Manifest:
        rows, events = self._rows.close(), self._events.close()
        number, at = self._last or (None, None)
        manifest = Manifest(self._module, self._day, self.after, through, number, at, rows, events, self._incomplete)
        write_manifest(self._archive.folder, manifest)
        return manifest

    def abort(self) -> None:
        self._rows.abort()
        self._events.abort()


def _add(writers: Mapping[str, _ModuleWriter], transaction: Transaction) -> None:
    chosen = {name: writer for name, writer in writers.items() if writer.after < transaction.number}
    for row in transaction.rows:
        if row.module in chosen:
            chosen[row.module].add_row(row)
    try:
        events = transaction.events()
    except HistoryIncomplete:  # a reader meets the same, from the rows
        for row in transaction.rows:
            if row.module in chosen:
                chosen[row.module].note_incomplete()
        return
    for event in events:
        if event.module in chosen:
            chosen[event.module].add_event(event)


def _start(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
