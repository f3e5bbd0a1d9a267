"""
Read the histories of the modules of one process: the published events in their order, page by page.

A row may refer to one of another module, which this process may not run: its table is read, too, where the database has it.

The order is that of the numbers of the transactions, and within one that of the decisions: a cause comes before its
effects. On PostgreSQL several processes write at once, and the transaction with the smaller number may be committed later.
A reader must not pass it. So it takes the largest number that it sees, waits for the transactions that are writing to the
histories at this moment, and reads up to that number: each smaller one was given to a transaction that is finished now.
"""

from __future__ import annotations

__all__ = ["HistoryPage", "HistoryReader", "SeveralDatabases"]

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial

from attrs import frozen
from sqlalchemy import Connection

from app.clock import SystemClock
from app.storage.archive.history_content import POSITIONS, HistoryEvent, Row, TransactionHistory
from app.storage.archive.history_table import HistoryTable
from app.storage.errors import StorageUnavailable
from app.storage.sql.database import Database
from bus.subjects import without_lane

EXAMINED_MAX = 2**19
"""Bytes of the history, as stored, that one page examines for a rare subject: about 2,000 orders that were placed under load."""

FETCHED_MAX = 64
"""Transactions that are read at once. The first read fetches `FETCHED_MIN`; each further one twice as many."""

FETCHED_MIN = 4

WRITERS_SECONDS = 5.0
"""How long a reader waits for the transactions that were writing when it began; each takes milliseconds."""

_POLL_SECONDS = 0.005
_LAST = 2**62


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
        self, histories: Mapping[str, tuple[Database, HistoryTable]], now: Callable[[], datetime] = SystemClock().now
    ) -> None:
        """*histories* are by module; rows that are too old at *now* are not shown."""
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
            ValueError: A row is damaged, or was written by a newer release.
        """
        database, wanted = self._wanted(module)
        tables = await database.read(partial(self._tables, database, wanted))
        last = await self._last_complete(database, tables)
        number, count, examined = (after + 1) // POSITIONS, FETCHED_MIN, 0
        found: list[HistoryEvent] = []
        while True:
            fetch = partial(self._fetch, tables, wanted, number, last, count, EXAMINED_MAX - examined)
            transactions, size = await database.read(fetch)
            examined += size
            for _, events in transactions:
                found += [each for each in events if each.seq > after and each.module in wanted and _matches(each, subject)]
            if len(found) > limit:
                return HistoryPage(found[:limit], found[limit - 1].seq)
            if examined < EXAMINED_MAX and len(transactions) < count:
                return HistoryPage(found, None)
            number = transactions[-1][0] + 1
            if examined >= EXAMINED_MAX:
                return HistoryPage(found, number * POSITIONS - 1)
            count = min(2 * count, FETCHED_MAX)

    async def bounds(self, module: str | None = None) -> tuple[int, int] | None:
        """
        Return the numbers of the first and of the last transaction; None while the history is empty.

        Raises:
            SeveralDatabases, StorageUnavailable: As for `page`.
        """
        database, wanted = self._wanted(module)
        names = [self._histories[name][1].name for name in wanted]
        union = " UNION ALL ".join(f"SELECT min(number) AS first, max(number) AS last FROM {name}" for name in names)
        sql = f"SELECT min(first), max(last) FROM ({union}) AS found"
        first, last = (await database.read(lambda connection: connection.exec_driver_sql(sql).all()))[0]
        return None if first is None else (first, last)

    def _wanted(self, module: str | None) -> tuple[Database, Collection[str]]:
        """Return the names of *module*, or of all modules, and their database."""
        wanted = [module] if module is not None else list(self._histories)
        database = self._histories[wanted[0]][0]
        if any(self._histories[name][0] is not database for name in wanted):
            raise SeveralDatabases("the modules have several databases, each with an order of its own: name one module")
        return database, wanted

    def _tables(self, database: Database, wanted: Collection[str], connection: Connection) -> dict[str, HistoryTable]:
        """Return the histories of *wanted*, and what else *database* has now."""
        names = {name.removesuffix("_history") for (name,) in connection.exec_driver_sql(database.dialect.histories_sql)}
        others = {name: HistoryTable(name, database.dialect) for name in sorted(names - {*wanted})}
        return {name: self._histories[name][1] for name in wanted} | others

    async def _last_complete(self, database: Database, tables: Mapping[str, HistoryTable]) -> int:
        """Return a number up to which every transaction is finished."""
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

    def _fetch(
        self,
        tables: Mapping[str, HistoryTable],
        wanted: Collection[str],
        first: int,
        last: int,
        count: int,
        size_max: int,
        connection: Connection,
    ) -> tuple[list[tuple[int, list[HistoryEvent]]], int]:
        """
        Return the numbers and the events of up to *count* transactions, from number *first* to *last*, and their bytes.

        Less than *count* if they have *size_max* bytes, or if there are no more.
        """
        now = self._now()
        sizes: Counter[int] = Counter()
        for name in wanted:
            sizes.update(tables[name].numbers(connection, first, last, count, now))
        numbers, size = [], 0
        for number in sorted(sizes)[:count]:
            if size < size_max:
                numbers.append(number)
                size += sizes[number]
        # Those of one transaction have one time; a module that was moved here has brought numbers that are in use.
        rows: dict[int, dict[str, list[Row]]] = {number: defaultdict(list) for number in numbers}
        for table in tables.values():
            for row in table.rows(connection, numbers):
                rows[row.number][row.at].append(row)
        events: dict[int, list[HistoryEvent]] = {number: [] for number in numbers}
        for number, transactions in rows.items():
            for transaction in transactions.values():
                if any(row.module in wanted for row in transaction):
                    events[number] += TransactionHistory(transaction).events()
        return list(events.items()), size


def _matches(event: HistoryEvent, subject: str | None) -> bool:
    return subject in (None, event.subject, without_lane(event.subject))
