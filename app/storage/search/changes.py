"""
Find the states of one class that have changed since a mark, whichever process has changed them.

A state's ``updated_at`` is the time at which its transaction was decided. The transaction becomes visible later, and on a
shared database another process's clock may be behind, so a search goes back by `VISIBILITY_DELAY_MAX` before its mark. On
PostgreSQL a mark also has the oldest transaction that was not finished when it was made: every row that was not visible
then was written by that transaction or by a later one (``xmin``), also if its ``updated_at`` is before the mark. So two
looks at short intervals find each change once, and none is left out because its transaction became visible late.

No index of the order path serves this search. PostgreSQL has a BRIN index on the time, which holds two values for a range of
pages. SQLite walks the keys, a part at a time: its only writer is the process that searches, and so it needs the search
only for what it did before its start.
"""

from __future__ import annotations

__all__ = ["EXAMINED_MAX", "PAGE", "VISIBILITY_DELAY_MAX", "ChangeMark", "ChangePage", "ChangeSearch"]

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from attrs import frozen
from sqlalchemy import Connection, Table

from app.storage.sql.dialect import Dialect

VISIBILITY_DELAY_MAX = timedelta(minutes=2)
"""Longest time between a state's ``updated_at`` and its visibility: the skew of clocks, and the limits of a transaction."""

EXAMINED_MAX = 10_000
PAGE = 1_000


@frozen
class ChangeMark:
    """A moment, as the clock of a process gave it, and the oldest transaction that was not finished; None if unknown."""

    at: datetime
    transaction: str | None = None


class ChangePage(NamedTuple):
    """Keys of changed states, each with the text of its ``updated_at``, and the key to continue after; None at the end."""

    versions: list[tuple[str, str]]
    after: str | None


class ChangeSearch:
    """Searches *table*, whose first column is the key, and which has a column ``updated_at``."""

    def __init__(self, table: Table, dialect: Dialect) -> None:
        self._dialect = dialect
        self._table, self._key = table.name, f'"{next(iter(table.columns)).name}"'
        self._columns = f"{self._key}, {dialect.timestamp_sql('updated_at')}"

    def mark(self, connection: Connection, now: datetime) -> ChangeMark:
        """Return a mark of what *connection* sees, at *now*."""
        if not self._dialect.is_shared:
            return ChangeMark(now)
        oldest: str = connection.exec_driver_sql("SELECT pg_snapshot_xmin(pg_current_snapshot())::text").scalar_one()
        return ChangeMark(now, oldest)

    def find(self, connection: Connection, since: ChangeMark, after: str | None) -> ChangePage:
        """
        Return states that have changed since the mark *since*, in the order of their keys, beyond the key *after*.

        Some that have changed a little before it are among them.
        """
        key = self._key
        conditions = {"updated_at >= ?": (since.at - VISIBILITY_DELAY_MAX).isoformat(timespec="microseconds")}
        if after is not None:
            conditions[f"{key} > ?"] = after
        if self._dialect.is_shared:
            if since.transaction is not None:
                conditions["age(xmin) <= age(?::xid8::xid)"] = since.transaction
            found = self._rows(connection, conditions, f" LIMIT {PAGE}")
            return ChangePage(found, found[-1][0] if len(found) == PAGE else None)
        boundary = self._boundary(connection, after)
        if boundary is not None:
            conditions[f"{key} <= ?"] = boundary
        return ChangePage(self._rows(connection, conditions), boundary)

    def _rows(self, connection: Connection, conditions: Mapping[str, str], limit: str = "") -> list[tuple[str, str]]:
        where = " AND ".join(conditions)
        sql = f"SELECT {self._columns} FROM {self._table} WHERE {where} ORDER BY {self._key}{limit}"
        found = connection.exec_driver_sql(self._dialect.to_driver_sql(sql), tuple(conditions.values()))
        return [(key, version) for key, version in found]

    def _boundary(self, connection: Connection, after: str | None) -> str | None:
        """Return the last key that a search beyond *after* examines; None if it comes to the end of the table."""
        where, values = ("", ()) if after is None else (f" WHERE {self._key} > ?", (after,))
        sql = f"SELECT {self._key} FROM {self._table}{where} ORDER BY {self._key} LIMIT 1 OFFSET {EXAMINED_MAX - 1}"
        found: str | None = connection.exec_driver_sql(self._dialect.to_driver_sql(sql), values).scalar()
        return found
