"""
Fetch whole transactions from the histories in one database, with the rows of every module that took part.

On PostgreSQL several processes write at once, and the transaction with the smaller number may be committed later.
A reader must not pass it. So it takes the largest number that it sees, waits for the transactions that are writing to the
histories at this moment, and reads up to that number: each smaller one was given to a transaction that is finished now.
"""

from __future__ import annotations

__all__ = ["WRITERS_SECONDS", "HistorySource", "Transaction"]

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial

from sqlalchemy import Connection

from app.storage.archive.history_content import Row, TransactionHistory
from app.storage.archive.history_table import HistoryTable
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
        super().__init__(rows)


class HistorySource:
    """The histories in *database*: those of *wanted*, and of what else it has, to which their rows may refer."""

    def __init__(
        self, database: Database, tables: Mapping[str, HistoryTable], wanted: Collection[str], now: Callable[[], datetime]
    ) -> None:
        """*tables* are by module; rows that are too old at *now* are not shown."""
        self.wanted = wanted
        self._database = database
        self._tables = tables
        self._now = now

    async def last_finished(self) -> int:
        """
        Return a number up to which every transaction is finished.

        Raises:
            StorageUnavailable: The database is out of reach, or a transaction does not end.
        """
        database, tables = self._database, self._tables
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

    async def fetch(self, first: int, last: int, count: int, size_max: int) -> tuple[list[Transaction], int]:
        """
        Return up to *count* transactions, from number *first* to *last*, in their order, and their bytes.

        Less than *count* if they have *size_max* bytes, or if there are no more. One that no module of `wanted` took part in
        is not there. Two may have one number, if a module was moved here from another database; both are there.

        Raises:
            StorageUnavailable: The database is out of reach.
            ValueError: A row is damaged, or was written by a newer release.
        """
        return await self._database.read(partial(self._fetch, first, last, count, size_max))

    def _fetch(
        self, first: int, last: int, count: int, size_max: int, connection: Connection
    ) -> tuple[list[Transaction], int]:
        now = self._now()
        sizes: Counter[int] = Counter()
        for name in self.wanted:
            sizes.update(self._tables[name].numbers(connection, first, last, count, now))
        numbers, size = [], 0
        for number in sorted(sizes)[:count]:
            if size < size_max:
                numbers.append(number)
                size += sizes[number]
        rows = [row for table in self._tables.values() for row in table.rows(connection, numbers)]
        return self._transactions(numbers, rows), size

    def _transactions(self, numbers: Sequence[int], rows: Sequence[Row]) -> list[Transaction]:
        # Those of one transaction have one time; a module that was moved here has brought numbers that are in use.
        found: dict[int, dict[str, list[Row]]] = {number: defaultdict(list) for number in numbers}
        for row in rows:
            found[row.number][row.at].append(row)
        return [
            Transaction(rows)
            for transactions in found.values()
            for rows in transactions.values()
            if any(row.module in self.wanted for row in rows)
        ]
