"""
What a module keeps: its states, its inbox and its outbox, read and written inside somebody's transaction.

Nothing here begins or ends a transaction; see `app.storage.sql.database` for who does.
"""

from __future__ import annotations

__all__ = ["InboxEntry", "ModuleStore", "time_ordered_id_range"]

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, MetaData

from app.storage.outbox import OutboxMessage
from app.storage.sql.database import Database
from app.storage.state_cache import StateCache
from app.storage.state_rows import StateMapper, to_db_timestamp
from app.storage.tables import message_tables
from bus.ids import id_lower_bound
from modules.module import Module

OUTBOX_RETENTION = timedelta(hours=24)
"""How long a sent event stays, so that a stream that was lost can be published again."""

INBOX_RETENTION = timedelta(hours=48)
"""How long we know a copy when we meet it: longer than anybody can send one, and than an idempotency key lives."""

CLOCK_SKEW_MAX = timedelta(minutes=1)
"""How far ahead of us a clock may be that ids get their times from."""

HANDOVER_DELAY = timedelta(seconds=5)
"""How long a process on a shared database has what it committed to itself; then whoever leads takes it for forgotten."""

PURGE_MAX = 500
"""Rows that one purge takes; it shares a transaction with others, who wait for it."""


_BY_ID = itemgetter(0)
_NONE: Mapping[type, Collection[str]] = {}


ProcessedIds = dict[str, tuple[str | None, str | None]]
"""What was heard before: by id, the fingerprint and the answer that are kept for it."""


class InboxEntry(NamedTuple):
    """A row of the inbox."""

    id: str
    heard_at: str
    untimed: int
    """1 for an id that begins with no time, or with one to come: it is purged by its age, all others in their order."""
    fingerprint: str | None
    answer: str | None


_FIRST_ID = id_lower_bound(datetime(2024, 1, 1, tzinfo=UTC))
"""No order is older; what is less begins with no time, but perhaps with the zeros of a number."""


@lru_cache(16)
def time_ordered_id_range(now: datetime) -> tuple[str, str]:
    """Return between which texts the ids lie that begin with the time of their cause, as far as it has come by *now*."""
    return _FIRST_ID, id_lower_bound(now + CLOCK_SKEW_MAX)


class ModuleStore:
    """One module's tables in its database."""

    def __init__(self, module: Module, database: Database) -> None:
        self.module = module
        self.database = database
        dialect = self._dialect = database.dialect
        self.mappers = {cls: StateMapper(cls, table, dialect) for cls, table in module.tables.items()}
        inbox_table, outbox_table, _ = message_tables(module.name, MetaData())
        inbox, outbox = inbox_table.name, outbox_table.name
        moments = ("occurred_at", "due_at")
        columns = ", ".join(dialect.timestamp_sql(name) if name in moments else name for name in OutboxMessage._fields)

        self._cache = None if dialect.is_shared else StateCache(self.mappers)
        self._known = dialect.by_keys(f"SELECT id, fingerprint, answer FROM {inbox} WHERE id {{keys}}")
        self._keep = dialect.insert(inbox_table, InboxEntry._fields)
        self._say = dialect.insert(outbox_table, OutboxMessage._fields, "ON CONFLICT (id) DO NOTHING")
        self._withdraw = dialect.by_keys(
            f"DELETE FROM {outbox} WHERE name {{keys}} AND name IS NOT NULL AND sent_at IS NULL"
        )
        sent = "id {keys}"
        if dialect.skip_locked:
            sent = f"id IN (SELECT id FROM {outbox} WHERE {sent}{dialect.skip_locked})"
        self._mark = dialect.by_keys(f"UPDATE {outbox} SET sent_at = ? WHERE {sent}")
        unsent = f"FROM {outbox} WHERE sent_at IS NULL AND due_at <= ?"
        self._due = dialect.text(
            f"SELECT id {unsent} AND (due_at <= ? OR name IS NOT NULL) ORDER BY {outbox}.due_at LIMIT ?"
        )
        self._outbox_messages = dialect.by_keys(f"SELECT {columns} FROM {outbox} WHERE id {{keys}}")
        self._due_count = dialect.text(f"SELECT count(*) {unsent}")
        self._due_oldest = dialect.text(f"SELECT {dialect.timestamp_sql('min(due_at)')} {unsent}")

        def purge(table: str, which: str, order: str) -> str:
            some = f"SELECT id FROM {table} WHERE {which} ORDER BY {order} LIMIT {PURGE_MAX}{dialect.skip_locked}"
            return dialect.text(f"DELETE FROM {table} WHERE id IN ({some})")

        self._purge_outbox = purge(outbox, "id < ? AND sent_at < ?", "id")
        self._purge_foreign = purge(outbox, "id >= ? AND sent_at < ?", "id")
        self._purge_inbox = purge(inbox, "id >= ? AND id < ? AND heard_at < ?", "id")
        self._purge_untimed = purge(inbox, "untimed = 1 AND heard_at < ?", "heard_at")

    def load_with_inbox(
        self, connection: Connection, ids: Sequence[str], keys: Mapping[type, Collection[str]]
    ) -> tuple[ProcessedIds, dict[type, dict[str, Any]]]:
        """Return what `known` and `load` do; a database that is ours alone is not asked for what was written last."""
        load = self.load if self._cache is None else self._cache.load
        return self.find_processed(connection, ids) if ids else {}, load(connection, keys)

    def find_processed(self, connection: Connection, ids: Sequence[str]) -> ProcessedIds:
        """Return those of *ids* that were heard before, each with the fingerprint and the answer kept for it."""
        return {row[0]: (row[1], row[2]) for row in self._known.run(connection, [(id,) for id in ids])}

    def load(self, connection: Connection, keys: Mapping[type, Iterable[str]]) -> dict[type, dict[str, Any]]:
        """
        Return the states under *keys*, by class and key, and let nobody else change them until the transaction ends.

        One select per table, in the order in which the module names its tables, in the order of the keys: whoever waits
        for another's states is not waited for himself.
        """
        return {cls: rows.lock(connection, sorted(keys[cls])) for cls, rows in self.mappers.items() if cls in keys}

    def save(
        self,
        connection: Connection,
        *,
        states: Mapping[type, Mapping[str, Any]],
        new_keys: Mapping[type, Collection[str]] = _NONE,
        inbox_entries: Sequence[InboxEntry],
        cancelled_timers: Sequence[str],
        outgoing: Sequence[OutboxMessage],
    ) -> None:
        """
        Write everything that a batch has changed; one statement per table.

        *new_keys* are the keys that were looked for and not found. On a shared database, what is new there or *inbox_entries* and was
        written by somebody else meanwhile raises: the whole transaction has to be done again.
        """
        for cls, changed in states.items():
            self.mappers[cls].save(connection, list(changed.values()), new_keys.get(cls, ()))
            if self._cache is not None:
                self._cache.keep(cls, changed)
        if inbox_entries:
            self._keep.run(connection, sorted(inbox_entries, key=_BY_ID) if self._dialect.is_shared else inbox_entries)
        if cancelled_timers:
            self._withdraw.run(connection, [(name,) for name in cancelled_timers])
        if outgoing:
            self._say.run(connection, sorted(outgoing, key=_BY_ID) if self._dialect.is_shared else outgoing)

    def mark_sent(self, connection: Connection, ids: Sequence[str], now: datetime) -> None:
        """Note that the bus is answerable for the parcels *ids*."""
        self._mark.run(connection, [(id,) for id in sorted(ids)], (to_db_timestamp(now),))

    def fetch_due(
        self, connection: Connection, now: datetime, limit: int, grace: timedelta, besides: Set[str] = frozenset()
    ) -> list[OutboxMessage]:
        """
        Return up to *limit* parcels that are due and not marked as sent, the longest due first, *besides* some ids.

        What is due for less than *grace* is left out, unless it was said for later: it was committed just now, and
        whoever did that has it in hand.
        """
        values = (to_db_timestamp(now), to_db_timestamp(now - grace), len(besides) + limit)
        due = (id for (id,) in connection.exec_driver_sql(self._due, values) if id not in besides)
        found = self._outbox_messages.run(connection, [(id,) for id in islice(due, limit)])
        return sorted((OutboxMessage(*row) for row in found), key=attrgetter("due_at"))

    def handover_delay(self, own: timedelta) -> timedelta:
        """Return for how long whoever has committed something has it in hand: *own*, or what all are given on a shared database."""
        return HANDOVER_DELAY if self._dialect.is_shared else own

    def acquire_leadership(self, connection: Connection, is_fit: bool) -> bool:
        """
        Take, keep or (no longer *is_fit*) give up looking after what lies in the outbox; return whether it is ours.

        Of all processes that run this module on a shared database one does it at a time: what two find, both would send.
        """
        return self._dialect.try_lead(connection, f"{self.module.name} relay", is_fit)

    def count_due(self, connection: Connection, now: datetime) -> int:
        """Return how many there are."""
        count: int = connection.exec_driver_sql(self._due_count, (to_db_timestamp(now),)).scalar_one()
        return count

    def oldest_due_seconds(self, connection: Connection, now: datetime) -> float:
        """Return for how long the first of them has been due; 0 when there is none."""
        oldest = connection.exec_driver_sql(self._due_oldest, (to_db_timestamp(now),)).scalar_one()
        return 0.0 if oldest is None else (now - datetime.fromisoformat(oldest)).total_seconds()

    def purge(self, connection: Connection, now: datetime) -> int:
        """
        Forget a few rows that nobody needs any more; return how many.

        An id begins with the milliseconds since 1970 at which its cause came in, so what is old enough to go is a
        range of the primary key and needs no index of its own; but for what came from outside under whatever id it had:
        of that, what it caused mostly lies beyond all ids that begin with a time.
        """
        sent_before, heard_before = now - OUTBOX_RETENTION, now - INBOX_RETENTION
        gone = 0
        for text, values in (
            (self._purge_outbox, (id_lower_bound(sent_before), to_db_timestamp(sent_before))),
            (self._purge_foreign, (time_ordered_id_range(now)[1], to_db_timestamp(sent_before))),
            (self._purge_inbox, (_FIRST_ID, id_lower_bound(heard_before), to_db_timestamp(heard_before))),
            (self._purge_untimed, (to_db_timestamp(heard_before),)),
        ):
            gone += connection.exec_driver_sql(text, values).rowcount
        return gone
