"""
Read the histories of the modules of one process: the published events in their order, page by page.

A row may refer to one of another module, which this process may not run: its table is read, too, where the database has it.

The order is that of the numbers of the transactions, and within one that of the decisions: a cause comes before its
effects.
"""

from __future__ import annotations

__all__ = ["HistoryPage", "HistoryReader", "SeveralDatabases"]

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from attrs import frozen
from sqlalchemy import Connection

from app.clock import SystemClock
from app.storage.archive.history_content import POSITIONS, HistoryEvent
from app.storage.archive.history_source import Contents, HistorySource, Transaction
from app.storage.archive.history_table import HistoryTable
from app.storage.archive.parquet_archive import Archive
from app.storage.sql.database import Database
from bus.subjects import without_lane

EXAMINED_MAX = 2**19
"""Bytes of the history, as stored, that one page examines for a rare subject: about 2,000 orders that were placed under load."""

FETCHED_MAX = 64
"""Transactions that are read at once. The first read fetches `FETCHED_MIN`; each further one twice as many."""

FETCHED_MIN = 4

READ_MAX, READ_BYTES = 512, 2**20
"""Transactions, and bytes as stored, that `HistoryReader.transactions` reads at once."""


class SeveralDatabases(Exception):
    """The modules have several databases, and their histories no common order: one module must be named."""


@frozen
class HistoryPage:
    """Published events in their order; *next_after* is what the next page begins after, None at the end."""

    events: Sequence[HistoryEvent]
    next_after: int | None


class HistoryReader:
    """The histories of the modules of this process."""

    def __init__(
        self,
        histories: Mapping[str, tuple[Database, HistoryTable]],
        now: Callable[[], datetime] = SystemClock().now,
        archive: Archive | None = None,
    ) -> None:
        """*histories* are by module; rows that are too old at *now* are not shown. What *archive* has is read there."""
        self._archive = archive
        self._now = now
        self._histories = dict(histories)
        self.modules = frozenset(histories)

    async def page(
        self, *, after: int = 0, module: str | None = None, subject: str | None = None, limit: int = 50
    ) -> HistoryPage:
        """
        Return up to *limit* events that follow the event with the sequence number *after*.

        *subject* is one in any lane, or with its lane.

        Raises:
            SeveralDatabases: *module* is None, and there is no common order.
            StorageUnavailable: The database is unavailable.
            HistoryIncomplete: A row refers to one that does not exist; its message has the `seq` to go on after.
            HistoryDamaged: A row is damaged, or was written by a newer release; its message, too, has where to go on.
            ArchiveUnusable: A file of the archive cannot be used.
        """
        source = await self.source(*self._names(module))
        last = await source.last_finished()
        number, count, examined = (after + 1) // POSITIONS, FETCHED_MIN, 0
        found: list[HistoryEvent] = []
        while True:
            fetched = await source.fetch(number, last, count, EXAMINED_MAX - examined)
            examined += fetched.size
            for transaction in fetched.transactions:
                try:
                    found += _selected(transaction, after, source.wanted, subject)
                except ValueError:
                    if not found:
                        raise
                    return HistoryPage(found[:limit], found[:limit][-1].seq)
            if len(found) > limit:
                return HistoryPage(found[:limit], found[limit - 1].seq)
            if fetched.next_number is None:
                return HistoryPage(found, None)
            number = fetched.next_number
            if examined >= EXAMINED_MAX:
                return HistoryPage(found, number * POSITIONS - 1)
            count = min(2 * count, FETCHED_MAX)

    async def transactions(
        self, *, after: int = 0, until: int | None = None, module: str | None = None
    ) -> AsyncIterator[Sequence[Transaction]]:
        """
        Yield the finished transactions whose numbers follow the number *after*, in their order, many at once.

        It ends with the last that is finished when it begins, or with the number *until*. Each has the rows of all modules that
        took part, those of other processes on the database included; with *module*, only transactions in which it took part
        are there. To follow the history, begin again after the last number that was seen.

        Raises:
            SeveralDatabases, StorageUnavailable, ValueError: As for `page`; see `groups`.
        """
        source = await self.source(*self._names(module))
        last = await source.last_finished()
        last = last if until is None else min(last, until)
        number: int | None = after + 1
        while number is not None:
            fetched = await source.fetch(number, last, READ_MAX, READ_BYTES)
            if fetched.transactions:
                yield fetched.transactions
            number = fetched.next_number

    async def events(
        self, *, after: int = 0, module: str | None = None, subject: str | None = None
    ) -> AsyncGenerator[Sequence[HistoryEvent], None]:
        """
        Yield the events that follow the event with the sequence number *after*, in their order, many at once.

        *module* and *subject* select as for `page`. It ends with the last transaction that is finished when it begins; each
        part is whole transactions, and may be empty. To follow the history, begin again after the last `seq`.

        Raises:
            SeveralDatabases, StorageUnavailable, HistoryIncomplete, ValueError: As for `page`.
        """
        wanted = (module,) if module is not None else self.modules
        async for transactions in self.transactions(after=(after + 1) // POSITIONS - 1, module=module):
            found: list[HistoryEvent] = []
            try:
                for transaction in transactions:
                    found += _selected(transaction, after, wanted, subject)
            except ValueError:
                yield found
                raise
            yield found

    async def contents(self, *, after: int) -> AsyncGenerator[Contents | None, None]:
        """
        Yield the rows of the transactions that follow the event with the sequence number *after*, or contain it, as they are stored.

        They have the events that `events` yields, and perhaps *after* and some before it. Ends as `events` does, or with None if
        what follows is in the archive.

        Raises:
            SeveralDatabases, StorageUnavailable, ArchiveUnusable: As for `page`.
        """
        source = await self.source(*self.modules)
        last = await source.last_finished()
        number: int | None = (after + 1) // POSITIONS
        while number is not None:
            found = await source.contents(number, last, READ_MAX, READ_BYTES)
            yield found
            number = None if found is None else found.next_number

    async def archived(self, *, after: int, count: int) -> Any:
        """
        Return about *count* events that follow the event with the sequence number *after*, out of the archive.

        They are a `pyarrow.Table`, see `Archive.events`: all events up to the greatest `seq` in it, in no order. None if the archive
        does not have the next ones, or cannot have all of them: `events` returns these.

        Raises:
            SeveralDatabases, StorageUnavailable: As for `page`.
            ArchiveUnusable: A file of the archive cannot be used, or the archive does not belong to the database.
        """
        if self._archive is None:
            return None
        source = await self.source(*self.modules)
        archives = await self._archive.call(self._archive.archives)
        await source.check(archives)
        return await self._archive.call(partial(self._archive.events, archives, self.modules, after, count))

    def groups(self) -> list[list[str]]:
        """Return the modules of each database: what can be read in one order."""
        found: dict[int, list[str]] = {}
        for name, (database, _) in self._histories.items():
            found.setdefault(id(database), []).append(name)
        return list(found.values())

    async def bounds(self, module: str | None = None) -> tuple[int, int] | None:
        """
        Return the numbers of the first and of the last transaction; None while the history is empty.

        Raises:
            SeveralDatabases, StorageUnavailable: As for `page`.
        """
        database, wanted = self._wanted(self._names(module))
        names = [self._histories[name][1].name for name in wanted]
        union = " UNION ALL ".join(f"SELECT min(number) AS first, max(number) AS last FROM {name}" for name in names)
        sql = f"SELECT min(first), max(last) FROM ({union}) AS found"
        first, last = (await database.read(lambda connection: connection.exec_driver_sql(sql).all()))[0]
        if self._archive is not None:
            archives = await self._archive.call(self._archive.archives)
            archived = [archives.of(name).first_number for name in wanted]
            first = min((number for number in (*archived, first) if number is not None), default=None)
        return None if first is None else (first, last)

    def _names(self, module: str | None) -> Sequence[str]:
        return [*self._histories] if module is None else [module]

    def _wanted(self, wanted: Collection[str]) -> tuple[Database, Collection[str]]:
        """Return the database of the modules *wanted*, and their names."""
        databases = {id(found := self._histories[name][0]): found for name in wanted}
        if len(databases) > 1:
            raise SeveralDatabases("the modules have several databases, each with an order of its own: name one module")
        return databases.popitem()[1], wanted

    async def source(self, *modules: str) -> HistorySource:
        """
        Return what the iterators read from: the histories of *modules*, and what else their database has.

        Raises:
            SeveralDatabases, StorageUnavailable: As for `page`.
        """
        database, wanted = self._wanted(modules)
        tables = await database.read(partial(self._tables, database, wanted))
        return HistorySource(database, tables, wanted, self._now, self._archive)

    def _tables(self, database: Database, wanted: Collection[str], connection: Connection) -> dict[str, HistoryTable]:
        """Return the histories of *wanted*, and what else *database* has now."""
        names = {name.removesuffix("_history") for (name,) in connection.exec_driver_sql(database.dialect.histories_sql)}
        others = {name: HistoryTable(name, database.dialect) for name in sorted(names - {*wanted})}
        return {name: self._histories[name][1] for name in wanted} | others


def _selected(transaction: Transaction, after: int, wanted: Collection[str], subject: str | None) -> list[HistoryEvent]:
    return [each for each in transaction.events() if each.seq > after and each.module in wanted and _matches(each, subject)]


def _matches(event: HistoryEvent, subject: str | None) -> bool:
    return subject in (None, event.subject, without_lane(event.subject))
