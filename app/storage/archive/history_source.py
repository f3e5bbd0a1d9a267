"""
Fetch whole transactions from the histories in one database, with the rows of every module that took part.

On PostgreSQL several processes write at once, and the transaction with the smaller number may be committed later.
A reader must not pass it. So it takes the largest number that it sees, waits for the transactions that are writing to the
histories at this moment, and reads up to that number: each smaller one was given to a transaction that is finished now.
"""

from __future__ import annotations

__all__ = ["WRITERS_SECONDS", "Contents", "Fetched", "HistorySource", "Transaction"]

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial

from attrs import evolve, frozen
from sqlalchemy import Connection

from app.storage.archive.history_content import PLAIN, Decided, HistoryEvent, HistoryIncomplete, Row, TransactionHistory
from app.storage.archive.history_table import HistoryDamaged, HistoryTable, row_of
from app.storage.archive.parquet_archive import Archive, ArchivedHistory, Archives
from app.storage.archive.parquet_manifest import ArchiveUnusable, manifest_path
from app.storage.errors import StorageUnavailable
from app.storage.sql.database import Database

WRITERS_SECONDS = 5.0
"""How long a reader waits for the transactions that were writing when it began; each takes milliseconds."""

_POLL_SECONDS = 0.005
_LAST = 2**62


class Transaction(TransactionHistory):
    """
    A finished transaction with the rows of all modules that took part.

    *number* orders the transactions of a database; *at* is its time as the database stores it (UTC, with microseconds).
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.number, self.at = rows[0].number, rows[0].at
        self.rows = rows
        with self._damage():
            super().__init__(rows)

    def events(self) -> list[HistoryEvent]:
        """
        Return the published events in their order.

        Raises:
            HistoryIncomplete: The row of a producer is missing.
            HistoryDamaged: A row has no such entries as the format describes.
        """
        with self._damage():
            return super().events()

    def decisions(self) -> list[Decided]:
        """
        Return the decisions, module by module, those of each in their order.

        Raises:
            HistoryIncomplete, HistoryDamaged: As for `events`.
        """
        with self._damage():
            return super().decisions()

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except HistoryIncomplete:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            damaged = next((row for row in self.rows if _is_damaged(row)), self.rows[0])
            raise HistoryDamaged(damaged.module, self.number, f"it is damaged ({error!r})") from error


def _is_damaged(row: Row) -> bool:
    """Return whether the entries of *row* by themselves have not the form that they should have."""
    try:
        TransactionHistory([row]).events()
    except HistoryIncomplete:
        return False
    except (LookupError, TypeError, ValueError, AttributeError):
        return True
    return False


@frozen
class Fetched:
    """*transactions* in their order, with *size* bytes; the next begin with *next_number*, None at the end."""

    transactions: Sequence[Transaction]
    size: int
    next_number: int | None


@frozen
class Contents:
    """Module, number, time and content of each row of whole transactions; the next begin with *next_number*, None at the end."""

    rows: Sequence[tuple[str, int, str, bytes]]
    next_number: int | None


class HistorySource:
    """The histories in *database*: those of *wanted*, and of what else it has, to which their rows may refer."""

    def __init__(
        self,
        database: Database,
        tables: Mapping[str, HistoryTable],
        wanted: Collection[str],
        now: Callable[[], datetime],
        archive: Archive | None = None,
    ) -> None:
        """*tables* are by module; rows that are too old at *now* are not shown. What *archive* has is read there."""
        self._archive = archive
        self._checked: Archives | None = None
        self.wanted = wanted
        self.database = database
        self.tables = tables
        self._now = now

    async def last_finished(self) -> int:
        """
        Return a number up to which every transaction is finished.

        Raises:
            StorageUnavailable: The database is out of reach, or a transaction does not end.
        """
        database, tables = self.database, self.tables
        writers_sql = database.dialect.writers_sql([table.name for table in tables.values()])
        if writers_sql is None:
            return _LAST

        def largest(connection: Connection) -> int:
            union = " UNION ALL ".join(f"SELECT max(number) AS last FROM {table.name}" for table in tables.values())
            number: int = connection.exec_driver_sql(f"SELECT coalesce(max(last), 0) FROM ({union}) AS found").scalar_one()
            return number

        def writing(connection: Connection) -> set[str]:
            return {name for (name,) in connection.exec_driver_sql(writers_sql)}

        number = await database.read(largest)
        writers = await database.read(writing)
        until = asyncio.get_running_loop().time() + WRITERS_SECONDS
        while writers:
            if asyncio.get_running_loop().time() > until:
                raise StorageUnavailable("The history is being written to by a transaction that does not end.")
            await asyncio.sleep(_POLL_SECONDS)
            writers &= await database.read(writing)
        return number

    async def fetch(self, first: int, last: int, count: int, size_max: int) -> Fetched:
        """
        Return up to *count* transactions, from number *first* to *last*, in their order.

        Fewer than *count* if they have *size_max* bytes, if the next one is damaged, or if there are no more. One that no
        module of `wanted` took part in is not there. Two may have one number, if a module was moved here from another
        database; both are there.

        Raises:
            StorageUnavailable: The database is out of reach.
            HistoryDamaged: A row of the first transaction is damaged, or was written by a newer release.
            ArchiveUnusable: A file of the archive cannot be used, or the archive does not belong to the database.
        """
        until = last
        while True:
            try:
                found = await self._fetch(first, until, count, size_max)
            except HistoryDamaged as error:
                if error.number <= first:
                    raise
                until = error.number - 1
                continue
            if found.next_number is None and until < last:
                if not found.transactions:  # nothing is between *first* and the damaged one
                    first, until = until + 1, last
                    continue
                return evolve(found, next_number=until + 1)
            return found

    async def _fetch(self, first: int, last: int, count: int, size_max: int) -> Fetched:
        """Read archive and tables again if something was archived, and perhaps purged, in the meantime."""
        archive = self._archive
        if archive is None:
            step = _Step(self.tables, self.wanted, Archives({}, ()), first, last, count, size_max, self._now())
            return _fetched(step, [], await self.database.read(step.choose), self.wanted)
        while True:
            archives = await archive.call(archive.archives)
            if archives is not self._checked:
                await self.check(archives)
            step = _Step(self.tables, self.wanted, archives, first, last, count, size_max, self._now())
            await archive.call(partial(step.choose_archived, archive))
            rows = step.choose() if step.needs_no_table else await self.database.read(step.choose)
            archived = await archive.call(partial(step.archived_rows, archive))
            if await archive.call(partial(archive.is_current, archives)):
                self._checked = archives
                return _fetched(step, archived, rows, self.wanted)

    async def contents(self, first: int, last: int, count: int, size_max: int) -> Contents | None:
        """
        Return the rows of up to *count* transactions, from number *first* to *last*, as they are stored; see `fetch`.

        None if the archive has some of them: `fetch` returns these.

        Raises:
            StorageUnavailable, ArchiveUnusable: As for `fetch`.
        """
        archives = Archives({}, ())
        if self._archive is not None:
            archives = await self._archive.call(self._archive.archives)
            await self.check(archives)
            if any(archives.of(name).through >= first for name in self.tables):
                return None
        step = _Step(self.tables, self.wanted, archives, first, last, count, size_max, self._now())
        rows = await self.database.read(step.contents)
        if self._archive is not None and not await self._archive.call(partial(self._archive.is_current, archives)):
            return None
        return Contents(rows, step.next_number)

    async def check(self, archives: Archives) -> None:
        """
        Ensure that *archives* and the tables are of one database, with no row missing between them.

        The last row in the archive is the last in the table up to there: a purge leaves it, and numbers go on from it.

        Raises:
            ArchiveUnusable: They are not, or a row is.
        """

        def mismatch(connection: Connection) -> str | None:
            for name, table in self.tables.items():
                history = archives.of(name)
                if history.manifests and table.last_until(connection, history.through) != history.last:
                    return name
            return None

        name = await self.database.read(mismatch)
        if name is not None:
            raise ArchiveUnusable(self._mismatch(name, archives.of(name)))

    def _mismatch(self, name: str, history: ArchivedHistory) -> str:
        assert self._archive is not None
        path = manifest_path(self._archive.folder, name, history.manifests[-1].day)
        return (
            f"{path}: is the last day of {name}, and ends with transaction {history.last and history.last[0]}, which the database"
            " does not have in its place. It is the archive of another database, the database was restored from a backup, newer days"
            " are missing from this copy, or rows were deleted before they were archived (HISTORY_KEPT): restore the days, or name"
            " another folder"
        )


class _Step:
    """One read of archive and tables: which transactions, then their rows."""

    def __init__(
        self,
        tables: Mapping[str, HistoryTable],
        wanted: Collection[str],
        archives: Archives,
        first: int,
        last: int,
        count: int,
        size_max: int,
        now: datetime,
    ) -> None:
        self._tables, self._wanted, self._archives = tables, wanted, archives
        self._first, self._last, self._count, self._size_max = first, last, count, size_max
        self._now = now
        self._archived: dict[str, dict[int, int]] = {}
        self.needs_no_table = False
        """Whether all that is wanted is in the archive."""
        self.numbers: list[int] = []
        self.next_number: int | None = None
        self.size = 0

    def choose_archived(self, archive: Archive) -> None:
        """Find the next numbers in *archive*."""
        for name in self._wanted:
            history = self._archives.of(name)
            last = min(self._last, history.through)
            if self._first <= last:
                self._archived[name] = archive.sizes(history, self._first, last, self._count)
        found = sorted({number for sizes in self._archived.values() for number in sizes})[: self._count]
        are_enough = all(len(self._archived.get(name, ())) == self._count for name in self._wanted)
        self.needs_no_table = are_enough and all(found[-1] <= self._archives.of(name).through for name in self._tables)

    def choose(self, connection: Connection | None = None) -> list[Row]:
        """Choose the next numbers, those in the tables included; return their rows in the tables."""
        self._choose_numbers(connection)
        if connection is None:
            return []
        return [row for table, numbers in self._in_tables() for row in table.rows(connection, numbers)]

    def contents(self, connection: Connection) -> list[tuple[str, int, str, bytes]]:
        """Choose the next numbers; return module, number, time and content of their rows in the tables."""
        self._choose_numbers(connection)
        return [(table.module, *row) for table, numbers in self._in_tables() for row in table.contents(connection, numbers)]

    def _choose_numbers(self, connection: Connection | None) -> None:
        sizes: Counter[int] = Counter()
        for name in self._wanted:
            sizes.update(archived := self._archived.get(name, {}))
            if connection is not None and len(archived) < self._count:
                first = max(self._first, self._archives.of(name).through + 1)
                sizes.update(self._tables[name].numbers(connection, first, self._last, self._count, self._now))
        self.numbers, self.size = [], 0
        candidates = sorted(sizes)[: self._count]
        for number in candidates:
            if self.size < self._size_max:
                self.numbers.append(number)
                self.size += sizes[number]
        is_end = len(self.numbers) == len(candidates) < self._count
        self.next_number = None if is_end else self.numbers[-1] + 1

    def _in_tables(self) -> Iterator[tuple[HistoryTable, list[int]]]:
        for name, table in self._tables.items():
            through = self._archives.of(name).through
            yield table, [number for number in self.numbers if number > through]

    def archived_rows(self, archive: Archive) -> list[Row]:
        """Return the rows in *archive* of what was chosen."""
        return [
            row_of(name, number, at, PLAIN + content)
            for name in self._tables
            for number, at, content in archive.rows(self._archives.of(name), self.numbers)
        ]


def _fetched(step: _Step, archived: Sequence[Row], rows: Sequence[Row], wanted: Collection[str]) -> Fetched:
    # Those of one transaction have one time; a module that was moved here has brought numbers that are in use.
    found: dict[int, dict[str, list[Row]]] = {number: defaultdict(list) for number in step.numbers}
    for row in (*archived, *rows):
        found[row.number][row.at].append(row)
    transactions = [
        Transaction(rows)
        for same_number in found.values()
        for rows in same_number.values()
        if any(row.module in wanted for row in rows)
    ]
    return Fetched(transactions, step.size, step.next_number)
