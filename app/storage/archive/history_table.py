"""
The history of a module: what it has decided and published, for ever, in a table of the module's own database.

One transaction appends one row to the history of each module that took part, with one number. Numbers grow: all histories
of a database are numbered together, and a number is given once the rows are locked of all states that the transaction
has decided about. So of two transactions that have to do with one state, the one that was committed first has the smaller
number. `app.storage.archive.history_content` describes the rows, `app.storage.archive.history_reader` their order.
"""

from __future__ import annotations

__all__ = ["PURGE_MARGIN", "HistoryDamaged", "HistoryTable", "row_of"]

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, MetaData

from app.storage.archive.history_content import PLAIN, POSITIONS, Row, decoded, seq_of
from app.storage.sql.dialect import Dialect, Statement
from app.storage.state_rows import to_db_timestamp
from app.storage.tables import history_table

PURGE_MARGIN = timedelta(hours=1)
"""
For how long a row exists after it was last shown.

Each module deletes its own rows, but a row refers to the rows of other modules with the same number. All rows of one number
have the same time. So a reader that leaves out rows by their time leaves out all of them, before any of them is deleted.
"""

PURGED_MAX = 50
"""Rows that one purge deletes; a row may hold the events of a few hundred orders."""


LATEST = 1_000
"""How many rows `HistoryTable.newest_at` looks at: more than a process writes while it starts."""

EMPTY = PLAIN + b"[]"
"""The content of a row without entries."""


class HistoryDamaged(ValueError):
    """A row of a history cannot be read; the message names it, and where to go on."""

    def __init__(self, module: str, number: int, why: object) -> None:
        self.number = number
        super().__init__(
            f"row {number} of {module}_history cannot be read: {why}; restore it from a backup, or read what follows, after"
            f" {seq_of(number, POSITIONS - 1)}"
        )


def row_of(module: str, number: int, at: str, content: bytes) -> Row:
    """
    Return the row of *module* that is stored as *content*.

    Raises:
        HistoryDamaged: It is damaged, or was written by a newer release.
    """
    try:
        return Row(module, number, at, decoded(content))
    except ValueError as error:
        raise HistoryDamaged(module, number, error) from error


class HistoryTable:
    """The history of *module*; its methods run inside the caller's transaction."""

    def __init__(self, module: str, dialect: Dialect) -> None:
        self.module = module
        self.kept: timedelta | None = None
        """The age from which on a row is not shown, and `PURGE_MARGIN` later deleted; None if all stay for ever."""
        self._dialect = dialect
        self._table = table = history_table(module, MetaData())
        self.name = table.name
        columns = f"number, {dialect.timestamp_sql('at')}, content"
        self._select = dialect.by_keys(f"SELECT {columns} FROM {self.name} WHERE number {{keys}}")
        between = f"SELECT number, length(content) FROM {self.name} WHERE number >= ? AND number <= ? ORDER BY number LIMIT ?"
        self._select_numbers = dialect.to_driver_sql(between)
        after = f"SELECT {columns} FROM {self.name} WHERE number > ? AND number <= ? ORDER BY number LIMIT ?"
        self._select_stored = dialect.to_driver_sql(after)
        recent = f"SELECT number FROM {self.name} WHERE at >= ? ORDER BY at LIMIT 1"
        self._select_recent = dialect.to_driver_sql(recent)
        self._select_last = dialect.to_driver_sql(
            f"SELECT number, {dialect.timestamp_sql('at')} FROM {self.name} WHERE number <= ? ORDER BY number DESC LIMIT 1"
        )
        self._select_newest = (
            f"SELECT {dialect.timestamp_sql('max(at)')} FROM (SELECT at FROM {self.name} ORDER BY number DESC LIMIT {LATEST}) latest"
        )
        self._select_at = dialect.to_driver_sql(
            f"SELECT {dialect.timestamp_sql('at')} FROM {self.name} WHERE at >= ? ORDER BY at LIMIT 1"
        )
        self._select_day = dialect.to_driver_sql(
            f"SELECT coalesce(max(number), 0) FROM {self.name} WHERE at >= ? AND at < ? AND number <= ?"
        )
        old = f"SELECT number FROM {self.name} WHERE at < ? AND number < (SELECT max(number) FROM {self.name}) ORDER BY at LIMIT {PURGED_MAX}"
        self._purge = dialect.to_driver_sql(f"DELETE FROM {self.name} WHERE number IN ({old}{dialect.skip_locked})")

    def prepare_inserts(self) -> tuple[Statement, Statement]:
        """Prepare the inserts of a row with the number that was given last, and with the next one."""
        insert = self._dialect.insert_numbered
        return insert(self._table, is_next=False), insert(self._table, is_next=True)

    def numbers(self, connection: Connection, first: int, last: int, limit: int, now: datetime) -> dict[int, int]:
        """Return the size in bytes of up to *limit* rows that are shown at *now*, by number, for the numbers from *first* to *last*."""
        if self.kept is not None:
            since = (to_db_timestamp(now - self.kept),)
            recent: int | None = connection.exec_driver_sql(self._select_recent, since).scalar()
            if recent is None:
                return {}
            first = max(first, recent)
        return {row[0]: row[1] for row in connection.exec_driver_sql(self._select_numbers, (first, last, limit))}

    def rows(self, connection: Connection, numbers: Sequence[int]) -> list[Row]:
        """
        Return the rows that exist under *numbers*.

        Raises:
            HistoryDamaged: A row is damaged, or was written by a newer release.
        """
        return [row_of(self.module, *row) for row in self.contents(connection, numbers)]

    def contents(self, connection: Connection, numbers: Sequence[int]) -> list[tuple[int, str, bytes]]:
        """Return number, time and content of the rows that exist under *numbers*, as they are stored."""
        found = self._select.fetch(connection, [(str(number),) for number in numbers])()
        return [(number, at, content) for number, at, content in found]

    def last_until(self, connection: Connection, number: int) -> tuple[int, str] | None:
        """Return number and time of the last row up to *number*; None if there is none."""
        row = connection.exec_driver_sql(self._select_last, (number,)).first()
        return None if row is None else (row[0], row[1])

    def newest_at(self, connection: Connection) -> datetime | None:
        """
        Return the greatest time of the last `LATEST` rows; None if there are none.

        It is not that of the last row if the clock was set back since.
        """
        at = connection.exec_driver_sql(self._select_newest).scalar()
        return None if at is None else datetime.fromisoformat(at)

    def first_since(self, connection: Connection, since: datetime) -> datetime | None:
        """Return the time of the first row, by time, that is not before *since*; None if there is none."""
        at = connection.exec_driver_sql(self._select_at, (to_db_timestamp(since),)).scalar()
        return None if at is None else datetime.fromisoformat(at)

    def last_between(self, connection: Connection, since: datetime, before: datetime, finished: int) -> int:
        """Return the greatest number, up to *finished*, of a row with a time from *since* and before *before*; 0 if there is none."""
        values = (to_db_timestamp(since), to_db_timestamp(before), finished)
        number: int = connection.exec_driver_sql(self._select_day, values).scalar_one()
        return number

    def count(self, connection: Connection, after: int, through: int) -> int:
        """Return how many rows have numbers greater than *after*, up to *through*."""
        sql = f"SELECT count(*) FROM {self.name} WHERE number > ? AND number <= ?"
        count: int = connection.exec_driver_sql(self._dialect.to_driver_sql(sql), (after, through)).scalar_one()
        return count

    def nth_before(self, connection: Connection, number: int, n: int) -> int | None:
        """Return the number that *n* rows come before, if it is less than *number*."""
        sql = f"SELECT number FROM {self.name} WHERE number < ? ORDER BY number LIMIT 1 OFFSET {n}"
        found: int | None = connection.exec_driver_sql(self._dialect.to_driver_sql(sql), (number,)).scalar()
        return found

    def delete_before(self, connection: Connection, number: int) -> None:
        """Delete all rows with numbers less than *number*."""
        sql = self._dialect.to_driver_sql(f"DELETE FROM {self.name} WHERE number < ?")
        connection.exec_driver_sql(sql, (number,))

    def empty(self, connection: Connection, number: int) -> None:
        """Delete the content of the row *number*, which stays."""
        sql = self._dialect.to_driver_sql(f"UPDATE {self.name} SET content = ? WHERE number = ?")
        connection.exec_driver_sql(sql, (EMPTY, number))

    def is_emptied(self, connection: Connection, number: int | None) -> bool:
        """Return whether the row *number* has no content any more."""
        sql = self._dialect.to_driver_sql(f"SELECT 1 FROM {self.name} WHERE number = ? AND content = ?")
        return connection.exec_driver_sql(sql, (number, EMPTY)).first() is not None

    def stored(self, connection: Connection, after: int, until: int, limit: int) -> list[tuple[int, str, bytes]]:
        """Return number, time and content of up to *limit* rows that follow number *after*, up to *until*, in their order."""
        found = connection.exec_driver_sql(self._select_stored, (after, until, limit))
        return [(number, at, content) for number, at, content in found]

    def purge(self, connection: Connection, now: datetime) -> int:
        """Delete some of the rows that are not shown any more; return how many. The last row stays: its number is in use."""
        if self.kept is None:
            return 0
        return connection.exec_driver_sql(self._purge, (to_db_timestamp(now - self.kept - PURGE_MARGIN),)).rowcount
