"""
The history of a module: what it has decided and published, for ever, in a table of the module's own database.

One transaction appends one row to the history of each module that took part, with one number. Numbers grow: all histories
of a database are numbered together, and a number is given once the rows are locked of all states that the transaction
has decided about. So of two transactions that have to do with one state, the one that was committed first has the smaller
number. `app.storage.archive.history_content` describes the rows, `app.storage.archive.history_reader` their order.
"""

from __future__ import annotations

__all__ = ["HistoryTable"]

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, MetaData

from app.storage.archive.history_content import Row, decoded
from app.storage.sql.dialect import Dialect, Statement
from app.storage.state_rows import to_db_timestamp
from app.storage.tables import history_table

PURGE_MARGIN = timedelta(hours=1)
"""
For how long a row exists after it was last shown.

Each module deletes its rows by itself, and one refers to those of another with its number. All of them have one time; so a
reader that leaves them out by their time leaves out all of them, before any is deleted.
"""

PURGED_MAX = 50
"""Rows that one purge deletes; a row may hold the events of a few hundred orders."""


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
        old = f"SELECT number FROM {self.name} WHERE at < ? AND number < (SELECT max(number) FROM {self.name}) ORDER BY at LIMIT {PURGED_MAX}"
        self._purge = dialect.to_driver_sql(f"DELETE FROM {self.name} WHERE number IN ({old}{dialect.skip_locked})")

    def prepare_inserts(self) -> tuple[Statement, Statement]:
        """Prepare the inserts of a row with the number that was given last, and with the next one."""
        insert = self._dialect.insert_numbered
        return insert(self._table, is_next=False), insert(self._table, is_next=True)

    def numbers(self, connection: Connection, first: int, last: int, limit: int, now: datetime) -> dict[int, int]:
        """Return up to *limit* numbers of rows that are shown at *now*, from *first* to *last*, in their order, each with its bytes."""
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
            ValueError: A row is damaged, or was written by a newer release.
        """
        found = self._select.fetch(connection, [(str(number),) for number in numbers])()
        return [Row(self.module, number, at, decoded(content)) for number, at, content in found]

    def stored(self, connection: Connection, after: int, until: int, limit: int) -> list[tuple[int, str, bytes]]:
        """Return number, time and content of up to *limit* rows that follow number *after*, up to *until*, in their order."""
        found = connection.exec_driver_sql(self._select_stored, (after, until, limit))
        return [(number, at, content) for number, at, content in found]

    def purge(self, connection: Connection, now: datetime) -> int:
        """Delete some of the rows that are not shown any more; return how many. The last row stays: its number is in use."""
        if self.kept is None:
            return 0
        return connection.exec_driver_sql(self._purge, (to_db_timestamp(now - self.kept - PURGE_MARGIN),)).rowcount
