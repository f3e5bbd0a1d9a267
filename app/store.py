"""
What a module keeps: its states, its inbox and its outbox, read and written inside somebody's transaction.

Nothing here begins or ends a transaction; see `app.database` for who does.
"""

from __future__ import annotations

__all__ = ["Kept", "Store"]

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, MetaData

from app.database import Database
from app.outbox import Parcel, tables_of
from app.rows import Rows, Statement, instant
from modules.module import Module

SENT_KEPT = timedelta(hours=24)
"""How long a sent event stays, so that a stream that was lost can be published again."""

HEARD_KEPT = timedelta(hours=48)
"""How long we know a copy when we meet it: longer than anybody can send one, and than an idempotency key lives."""

PURGE_MAX = 500
"""Rows that one purge takes; it shares a transaction with others, who wait for it."""


class Kept(NamedTuple):
    """A row of the inbox."""

    id: str
    heard_at: str
    fingerprint: str | None
    answer: str | None


class Store:
    """One module's tables in its database."""

    def __init__(self, module: Module, database: Database) -> None:
        self.module = module
        self.database = database
        self.rows = {cls: Rows(cls, table) for cls, table in module.remembers.items()}
        inbox, outbox, _ = (table.name for table in tables_of(module.name, MetaData()))
        parcel = f"({', '.join('?' for _ in Parcel._fields)})"
        columns = ", ".join(Parcel._fields)

        def marks(size: int) -> str:
            return ", ".join("?" * size)

        self._known = Statement(lambda n: f"SELECT id, fingerprint, answer FROM {inbox} WHERE id IN ({marks(n)})")
        self._keep = Statement(
            lambda n: f"INSERT INTO {inbox} VALUES {', '.join(['(?, ?, ?, ?)'] * n)} ON CONFLICT (id) DO NOTHING"
        )
        self._say = Statement(
            lambda n: f"INSERT INTO {outbox} ({columns}) VALUES {', '.join([parcel] * n)} ON CONFLICT (id) DO NOTHING"
        )
        self._withdraw = Statement(
            lambda n: f"DELETE FROM {outbox} WHERE name IN ({marks(n)}) AND name IS NOT NULL AND sent_at IS NULL"
        )
        self._mark = Statement(lambda n: f"UPDATE {outbox} SET sent_at = ? WHERE id IN ({marks(n)})")
        unsent = f"FROM {outbox} WHERE sent_at IS NULL AND due_at <= ?"
        self._due = f"SELECT {columns} {unsent} AND (due_at <= ? OR name IS NOT NULL) ORDER BY due_at LIMIT ?"
        self._due_count = f"SELECT count(*) {unsent}"
        self._due_oldest = f"SELECT min(due_at) {unsent}"
        self._purge_outbox = (
            f"DELETE FROM {outbox} WHERE id IN"
            f" (SELECT id FROM {outbox} WHERE id < ? AND sent_at < ? ORDER BY id LIMIT {PURGE_MAX})"
        )
        self._purge_inbox = (
            f"DELETE FROM {inbox} WHERE id IN"
            f" (SELECT id FROM {inbox} WHERE heard_at < ? ORDER BY heard_at LIMIT {PURGE_MAX})"
        )

    def known(self, connection: Connection, ids: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
        """Return those of *ids* that were heard before, each with the fingerprint and the answer kept for it."""
        return {row[0]: (row[1], row[2]) for row in self._known.run(connection, [(id,) for id in ids])}

    def load(self, connection: Connection, keys: Mapping[type, Iterable[str]]) -> dict[type, dict[str, Any]]:
        """Return the states under *keys*, by class and key; one select per table, in the order of the keys."""
        return {cls: self.rows[cls].load(connection, sorted(wanted)) for cls, wanted in keys.items()}

    def save(
        self,
        connection: Connection,
        *,
        states: Mapping[type, Mapping[str, Any]],
        heard: Sequence[Kept],
        withdrawn: Sequence[str],
        said: Sequence[Parcel],
    ) -> None:
        """Write everything that a batch has changed; one statement per table."""
        for cls, changed in states.items():
            self.rows[cls].save(connection, list(changed.values()))
        if heard:
            self._keep.run(connection, heard)
        if withdrawn:
            self._withdraw.run(connection, [(name,) for name in withdrawn])
        if said:
            self._say.run(connection, said)

    def mark_sent(self, connection: Connection, ids: Sequence[str], now: datetime) -> None:
        """Note that the bus is answerable for the parcels *ids*."""
        self._mark.run(connection, [(id,) for id in sorted(ids)], (instant(now),))

    def due(self, connection: Connection, now: datetime, limit: int, grace: timedelta) -> list[Parcel]:
        """
        Return up to *limit* parcels that are due and not marked as sent, the longest due first.

        What is due for less than *grace* is left out, unless it was said for later: it was committed just now, and
        whoever did that has it in hand.
        """
        values = (instant(now), instant(now - grace), limit)
        return [Parcel(*row) for row in connection.exec_driver_sql(self._due, values)]

    def due_count(self, connection: Connection, now: datetime) -> int:
        """Return how many there are."""
        count: int = connection.exec_driver_sql(self._due_count, (instant(now),)).scalar_one()
        return count

    def due_oldest_seconds(self, connection: Connection, now: datetime) -> float:
        """Return for how long the first of them has been due; 0 when there is none."""
        oldest = connection.exec_driver_sql(self._due_oldest, (instant(now),)).scalar_one()
        return 0.0 if oldest is None else (now - datetime.fromisoformat(oldest)).total_seconds()

    def purge(self, connection: Connection, now: datetime) -> int:
        """
        Forget a few rows that nobody needs any more; return how many.

        An id begins with the milliseconds since 1970 at which its cause came in, so what is old enough to go is a
        range of the outbox's primary key and needs no index of its own.
        """
        horizon = f"{int((now - SENT_KEPT).timestamp() * 1000):012x}"
        horizon = f"{horizon[:8]}-{horizon[8:]}"
        sent = connection.exec_driver_sql(self._purge_outbox, (horizon, instant(now - SENT_KEPT)))
        heard = connection.exec_driver_sql(self._purge_inbox, (instant(now - HEARD_KEPT),))
        return int(sent.rowcount) + int(heard.rowcount)
