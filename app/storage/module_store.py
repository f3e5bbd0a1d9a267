"""
One module's storage: its states, its inbox and its outbox, read and written inside the caller's transaction.

Nothing here begins or ends a transaction; `app.storage.sql.database` does.
"""

from __future__ import annotations

__all__ = ["FIRST_ID", "ModuleStore", "recent_id_range", "time_ordered_id_range"]

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import Any

import orjson
from backports.zstd import ZstdCompressor
from sqlalchemy import Connection, DateTime, MetaData, Table

from app.storage.archive.history_content import COMPRESSED, COMPRESSED_MIN, PLAIN, Entry, fired
from app.storage.archive.history_table import HistoryTable
from app.storage.archive.state_archive import StateArchive, Swept
from app.storage.heartbeat import Heartbeat
from app.storage.sql.database import Database
from app.storage.state_rows import StateCache, StateMapper, to_db_timestamp
from app.storage.tables import DUE_NOW, AuditEntry, InboxEntry, OutboxMessage, audit_table, shared_message_tables
from bus.ids import id_lower_bound
from modules.module import Module

OUTBOX_RETENTION = timedelta(hours=24)
"""How long a published event is kept, so that a lost stream can be published again."""

INBOX_RETENTION = timedelta(hours=48)
"""How long a duplicate is recognised: longer than any producer can send one, and longer than an idempotency key is valid."""

CLOCK_SKEW_MAX = timedelta(minutes=1)
"""By how much the clocks of processes may differ: an id may begin with a time that is this far ahead."""

RECENT = timedelta(days=1)
"""An order that is younger is not looked up in the archive: all orders there are older, even if the clocks differ."""

HANDOVER_DELAY = timedelta(seconds=5)
"""On a shared database, how long only the process that committed an event publishes it; after that the leader does."""

PURGE_MAX = 500
"""Rows that one statement of `ModuleStore.purge` deletes at most: other work in the same transaction waits for it."""

_BY_ID = itemgetter(0)
_NONE: Mapping[type, Collection[str]] = {}


ProcessedIds = dict[str, tuple[str | None, str | None]]
"""Ids of messages and requests processed before, each with its fingerprint and its response."""


FIRST_ID = id_lower_bound(datetime(2024, 1, 1, tzinfo=UTC))
"""No order is older. A smaller id does not begin with a time: it may be a number that is padded with zeros."""


@lru_cache(16)
def time_ordered_id_range(now: datetime) -> tuple[str, str]:
    """Return the bounds (from, below) of the ids that begin with the time of their cause, up to *now*."""
    return FIRST_ID, id_lower_bound(now + CLOCK_SKEW_MAX)


@lru_cache(16)
def recent_id_range(now: datetime) -> tuple[str, str]:
    """Return the bounds (from, below) of the ids of orders that are placed too shortly before *now* to be archived."""
    return id_lower_bound(now - RECENT), id_lower_bound(now + CLOCK_SKEW_MAX)


class ModuleStore:
    """The tables of *module* in its *database*."""

    def __init__(self, module: Module, database: Database) -> None:
        self.module = module
        self.database = database
        dialect = self._dialect = database.dialect
        self.mappers = {cls: StateMapper(cls, table, dialect) for cls, table in module.tables.items()}
        self._cache = None if dialect.is_shared else StateCache(self.mappers)
        self.archive = StateArchive(module, self.mappers, dialect)
        self.history = HistoryTable(module.name, dialect)
        self._insert_history = self.history.prepare_inserts()
        # At a higher level the rows are not smaller. One compressor for all: a new one takes longer than a short row.
        self._compressor = ZstdCompressor(level=1)
        inbox, outbox, _ = shared_message_tables(module.name)
        self._select_processed = dialect.by_keys(f"SELECT id, fingerprint, answer FROM {inbox.name} WHERE id {{keys}}")
        self._insert_inbox = dialect.insert(inbox, InboxEntry._fields)
        self._insert_outbox = dialect.insert(outbox, OutboxMessage._fields, "ON CONFLICT (id) DO NOTHING")
        self._audit = audit_table(module.name, MetaData())
        self._prepare_relay_statements(outbox)
        self._prepare_purge_statements(inbox.name, outbox.name)
        self.heartbeat = Heartbeat(module.name, dialect, INBOX_RETENTION)

    def _prepare_relay_statements(self, table: Table) -> None:
        dialect, outbox = self._dialect, table.name
        columns = ", ".join(
            dialect.timestamp_sql(column.name) if isinstance(column.type, DateTime) else column.name
            for column in (table.columns[member] for member in OutboxMessage._fields)
        )
        self._cancel_timers = dialect.by_keys(
            f"DELETE FROM {outbox} WHERE name {{keys}} AND name IS NOT NULL AND sent_at IS NULL"
        )
        sent = "id {keys}"
        if dialect.skip_locked:
            sent = f"id IN (SELECT id FROM {outbox} WHERE {sent}{dialect.skip_locked})"
        self._mark_sent = dialect.by_keys(f"UPDATE {outbox} SET sent_at = ? WHERE {sent}")
        ended = f"SELECT id FROM {outbox} WHERE id {{keys}} AND sent_at IS NULL{dialect.skip_locked}"
        self._end_timers = dialect.by_keys(f"UPDATE {outbox} SET due_at = ? WHERE id IN ({ended}) RETURNING id")
        self._remove = dialect.by_keys(f"DELETE FROM {outbox} WHERE id {{keys}} AND sent_at IS NULL")
        due = f"FROM {outbox} WHERE sent_at IS NULL AND due_at <= ?"
        is_handed_over = "(occurred_at <= ? OR occurred_at > ? OR name IS NOT NULL)"
        self._select_due_ids = dialect.to_driver_sql(f"SELECT id {due} AND {is_handed_over} ORDER BY {outbox}.due_at LIMIT ?")
        self._select_messages = dialect.by_keys(f"SELECT {columns} FROM {outbox} WHERE id {{keys}}")
        first = f"SELECT event_id {due} ORDER BY due_at LIMIT 500"
        self._count_versions = dialect.to_driver_sql(f"SELECT count(*), count(DISTINCT event_id) FROM ({first}) AS first")
        self._count_due = dialect.to_driver_sql(f"SELECT count(*) {due}")
        # Among rows with equal due times, the index has about the order in which they were written: the first few are enough.
        # A timer that has ended is left out: it occurred long before it was due.
        first_now = f"SELECT occurred_at AS since FROM {outbox} WHERE sent_at IS NULL AND due_at = ? AND name IS NULL ORDER BY due_at LIMIT 100"
        first_timer = f"SELECT due_at AS since FROM {outbox} WHERE sent_at IS NULL AND due_at > ? AND due_at <= ? ORDER BY due_at LIMIT 1"
        both = f"SELECT since FROM ({first_now}) AS n UNION ALL SELECT since FROM ({first_timer}) AS t"
        self._select_oldest_due = dialect.to_driver_sql(f"SELECT {dialect.timestamp_sql('min(since)')} FROM ({both}) AS oldest")

    def _prepare_purge_statements(self, inbox: str, outbox: str) -> None:
        def delete(table: str, condition: str, order: str) -> str:
            skip_locked = self._dialect.skip_locked
            ids = f"SELECT id FROM {table} WHERE {condition} ORDER BY {order} LIMIT {PURGE_MAX}{skip_locked}"
            return self._dialect.to_driver_sql(f"DELETE FROM {table} WHERE id IN ({ids})")

        self._purge_outbox = delete(outbox, "id < ? AND sent_at < ?", "id")
        self._purge_outbox_untimed = delete(outbox, "id >= ? AND sent_at < ?", "id")
        self._purge_inbox = delete(inbox, "id >= ? AND id < ? AND heard_at < ?", "id")
        self._purge_inbox_untimed = delete(inbox, "untimed = 1 AND heard_at < ?", "heard_at")

    def load_with_inbox(
        self, connection: Connection, ids: Sequence[str], keys: Mapping[type, Collection[str]]
    ) -> tuple[ProcessedIds, dict[type, dict[str, Any]]]:
        """
        Return what `find_processed` returns for *ids* and `load` for *keys*.

        On a database that only this process uses, states that were written recently come from the cache.
        """
        find_processed = self._select_processed.fetch(connection, [(id,) for id in ids])
        load = self.load if self._cache is None else self._cache.load
        states = load(connection, keys)
        return {row[0]: (row[1], row[2]) for row in find_processed()}, states

    def find_processed(self, connection: Connection, ids: Sequence[str]) -> ProcessedIds:
        """Return those of *ids* that are in the inbox, each with its fingerprint and its response."""
        return {row[0]: (row[1], row[2]) for row in self._select_processed.fetch(connection, [(id,) for id in ids])()}

    def load(self, connection: Connection, keys: Mapping[type, Iterable[str]]) -> dict[type, dict[str, Any]]:
        """
        Return the states under *keys*, by class and key, and lock their rows until the transaction ends.

        One select per table, in the order in which the module lists its tables and within a table in the order of the
        keys: all transactions lock in the same order and cannot deadlock.
        """
        locked = {cls: mapper.lock(connection, sorted(keys[cls])) for cls, mapper in self.mappers.items() if cls in keys}
        return {cls: states() for cls, states in locked.items()}

    def save(
        self,
        connection: Connection,
        *,
        states: Mapping[type, Mapping[str, Any]],
        new_keys: Mapping[type, Collection[str]] = _NONE,
        inbox_entries: Sequence[InboxEntry],
        cancelled_timers: Sequence[str],
        outgoing: Sequence[OutboxMessage],
        audit: Sequence[AuditEntry] = (),
    ) -> None:
        """
        Write everything that a batch has changed, with one statement per table.

        *new_keys* are the keys that were looked up and not found. On a shared database a state under one of them, or an
        inbox entry, that another process has inserted meanwhile raises a conflict: the transaction must be repeated.
        An outgoing message that is in the outbox already is left as it is.
        """
        for cls, changed in states.items():
            self.mappers[cls].save(connection, list(changed.values()), new_keys.get(cls, ()))
            if self._cache is not None:
                self._cache.put(cls, changed)
        # Sorted where other processes insert, too: all insert in the same order and cannot deadlock.
        is_shared = self._dialect.is_shared
        if inbox_entries:
            self._insert_inbox.execute(connection, sorted(inbox_entries, key=_BY_ID) if is_shared else inbox_entries)
        if cancelled_timers:
            self._cancel_timers.execute(connection, [(timer,) for timer in cancelled_timers])
        if outgoing:
            self._insert_outbox.execute(connection, sorted(outgoing, key=_BY_ID) if is_shared else outgoing)
        if audit:
            connection.execute(self._audit.insert(), [entry._asdict() for entry in audit])

    def append_history(self, connection: Connection, at: str, entries: Sequence[Entry], *, is_next: bool) -> None:
        """Add *entries*, decided *at* a time, to the history; without *is_next* under the number that was given last."""
        data = orjson.dumps(entries)
        content = PLAIN + data if len(data) < COMPRESSED_MIN else COMPRESSED + self._compressor.compress(data, ZstdCompressor.FLUSH_FRAME)
        self._insert_history[is_next].execute(connection, [(at, content)])

    def archive_some(self, cls: type, connection: Connection, after: str, before: datetime) -> Swept:
        """Move some states of *cls* to the archive; see `StateArchive.move`."""
        swept = self.archive.move(cls, connection, after, before)
        if self._cache is not None:
            self._cache.drop(cls, swept.keys)
        return swept

    def end_timers(self, connection: Connection, due: list[OutboxMessage], now: datetime) -> list[OutboxMessage]:
        """
        Make the timers among *due* ordinary messages, and add them to the history: before any effect, and once.

        Return *due* without the timers that another transaction has locked: it cancels them, or they stay due.
        """
        timers = [row for row in due if row.due_at != DUE_NOW]
        if not timers:
            return due
        ended = {id for (id,) in self._end_timers.fetch(connection, [(row.id,) for row in timers], (DUE_NOW,))()}
        # An event that has several versions has several rows.
        if events := [row for row in timers if row.id in ended and row.id == row.event_id]:
            self.append_history(connection, to_db_timestamp(now), fired(events), is_next=True)
        return [row for row in due if row.due_at == DUE_NOW or row.id in ended]

    def mark_sent(self, connection: Connection, ids: Sequence[str], now: datetime) -> None:
        """Mark the messages *ids*, which the bus has durably accepted, as sent at *now*."""
        self._mark_sent.execute(connection, [(id,) for id in sorted(ids)], (to_db_timestamp(now),))

    def remove(self, connection: Connection, ids: Sequence[str]) -> None:
        """Delete the messages *ids*, which the bus never accepts and which are dead letters now."""
        self._remove.execute(connection, [(id,) for id in sorted(ids)])

    def fetch_due(
        self,
        connection: Connection,
        now: datetime,
        limit: int,
        handover_delay: timedelta,
        excluded_ids: Set[str] = frozenset(),
    ) -> list[OutboxMessage]:
        """
        Return up to *limit* messages that are due, not sent and not among *excluded_ids*, the longest due first.

        A message that was committed less than *handover_delay* ago is left out unless it has a timer: the process that
        committed it publishes it. One that was committed in the future, by another clock, is not left out.
        """
        handed_over = to_db_timestamp(now - handover_delay), to_db_timestamp(now + CLOCK_SKEW_MAX)
        values = (to_db_timestamp(now), *handed_over, len(excluded_ids) + limit)
        due = (id for (id,) in connection.exec_driver_sql(self._select_due_ids, values) if id not in excluded_ids)
        positions = {id: position for position, id in enumerate(islice(due, limit))}
        found = self._select_messages.fetch(connection, [(id,) for id in positions])()
        return sorted((OutboxMessage(*row) for row in found), key=lambda message: positions[message.id])

    def handover_delay(self, local_delay: timedelta) -> timedelta:
        """Return how long only the process that committed a message publishes it: *local_delay* unless the database is shared."""
        return HANDOVER_DELAY if self._dialect.is_shared else local_delay

    def acquire_leadership(self, connection: Connection, is_eligible: bool) -> bool:
        """
        Take or keep the lead of the module's relays, or give it up if not *is_eligible*; return whether it is held.

        On a shared database one process at a time scans a module's outbox: two would publish the same messages. The lead
        ends with the connection.
        """
        return self._dialect.try_lead(connection, f"{self.module.name} relay", is_eligible)

    def count_due(self, connection: Connection, now: datetime) -> int:
        """Return the number of messages that are due and not sent."""
        count: int = connection.exec_driver_sql(self._count_due, (to_db_timestamp(now),)).scalar_one()
        return count

    def rows_per_event(self, connection: Connection, now: datetime) -> float:
        """Return how many of them carry one event, on average over the first few hundred; 0 if there is none."""
        rows, events = connection.exec_driver_sql(self._count_versions, (to_db_timestamp(now),)).one()
        return rows / events if events else 0.0

    def oldest_due_seconds(self, connection: Connection, now: datetime) -> float:
        """Return for about how long the oldest of them has been due; 0 if there is none."""
        values = (DUE_NOW, DUE_NOW, to_db_timestamp(now))
        oldest = connection.exec_driver_sql(self._select_oldest_due, values).scalar_one()
        return 0.0 if oldest is None else max(0.0, (now - datetime.fromisoformat(oldest)).total_seconds())

    def purge(self, connection: Connection, now: datetime) -> int:
        """
        Delete some of the rows whose retention has ended; return how many. Time that the clock has skipped does not count.

        Most ids begin with the time of their cause in milliseconds since 1970, so old rows are a range of the primary key
        and need no further index. The exceptions are messages that came from outside under an id of another form: the
        inbox has an index on the age of those, and the events they cause mostly have ids greater than any that begins
        with a time.
        """
        known = now - self.heartbeat.skipped(connection, now)
        sent_before, processed_before = known - OUTBOX_RETENTION, known - INBOX_RETENTION
        sent, processed = to_db_timestamp(sent_before), to_db_timestamp(processed_before)
        count = 0
        for sql, values in (
            (self._purge_outbox, (id_lower_bound(sent_before), sent)),
            (self._purge_outbox_untimed, (time_ordered_id_range(now)[1], sent)),
            (self._purge_inbox, (FIRST_ID, id_lower_bound(processed_before), processed)),
            (self._purge_inbox_untimed, (processed,)),
        ):
            count += connection.exec_driver_sql(sql, values).rowcount
        return count + self.history.purge(connection, known)
