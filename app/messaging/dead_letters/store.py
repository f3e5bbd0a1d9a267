"""
Store dead letters, one table per module in the module's own database, so that they survive a restart on either bus.

A dead letter belongs to the module whose consumer gave up: ``orders`` for ``orders`` and ``orders-express``. Its id is
derived from the consumer and the event, so a replay that fails again updates the stored dead letter.
"""

from __future__ import annotations

__all__ = ["ERRORS", "DeadLetterStore", "NotReplayable"]

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

from attrs import evolve
from loguru import logger
from sqlalchemy import ColumnElement, Connection, Delete, Select, Table, delete, func, select, update
from uuid_utils import uuid7

from app.messaging.cloudevents import event_id_and_trace
from app.messaging.dead_letters.archive import DeadLetterArchive
from app.messaging.dead_letters.groups import DeadLetterGroup, grouped, groups_in
from app.messaging.dead_letters.rows import (
    UNREADABLE,
    StoredDeadLetter,
    changed_pointers,
    outbox_message,
    row_of,
    stored_dead_letter,
    with_other_version,
)
from app.storage.audit import Audit, audit_entry
from app.storage.module_store import ModuleStore
from app.storage.tables import shared_message_tables
from app.telemetry.metrics import Metrics
from bus.contracts.registry import ContractRegistry
from bus.ids import derived_id
from bus.port import Clock, DeadLetter
from bus.subjects import is_unpublished, module_of, original_subject

Conditions = list[ColumnElement[bool]]
Ids = list[str]

ERRORS = UNREADABLE | {
    *("failed", "no_answer", "not_publishable"),
    # of webhooks
    *("nonsense", "not_asked_for", "two_charges", "unknown_order", "wrong_amount", "wrong_currency", "wrong_id"),
    *("not_captured", "partly_refunded", "refunded_elsewhere"),  # of webhooks, in releases before 0.3.0
}
"""Every error code that a dead letter can have; docs/reference/dead-letters.rst and docs/howto/payments.rst explain them."""

REPLAY_MAX = 500
"""Dead letters that are replayed or discarded in one transaction."""


class DeadLetterStore:
    """The dead letters of all modules of this process: `bus.port.DeadLetters` for the bus, `DeadLetterService` for the API."""

    def __init__(
        self,
        stores: Mapping[str, ModuleStore],
        contracts: ContractRegistry,
        clock: Clock,
        metrics: Metrics,
        not_replayable: Collection[str] = (),
    ) -> None:
        """*not_replayable* names the consumers that store dead letters but subscribe to nothing, such as a webhook."""
        self._stores = dict(stores)
        self._contracts = contracts
        self._not_replayable = frozenset(not_replayable)
        self._tables: dict[str, Table] = {name: shared_message_tables(name)[2] for name in stores}
        self.archive = DeadLetterArchive(self._stores, self._tables)
        self._clock = clock
        self._metrics = metrics

    async def add(self, dead_letter: DeadLetter) -> None:
        """Store *dead_letter* under the original subject of its message; see `bus.port.DeadLetters.add`."""
        dead_letter = evolve(dead_letter, message=evolve(dead_letter.message, subject=original_subject(dead_letter.message.subject)))
        name = module_of(dead_letter.consumer)
        if not await self._stores[name].database.write(partial(self._add, self._tables[name], dead_letter)):
            return
        self._metrics.dead_letters.labels(dead_letter.consumer, dead_letter.message.subject).inc()
        logger.error(
            "dead letter", id=_id(dead_letter), consumer=dead_letter.consumer, subject=dead_letter.message.subject,
            error=dead_letter.error, detail=dead_letter.detail, attempts=dead_letter.attempts,
            correlation_id=dead_letter.message.headers.get("ce-correlationid"),
        )  # fmt: skip

    @staticmethod
    def _add(table: Table, dead_letter: DeadLetter, connection: Connection) -> bool:
        """
        Insert or update the row of *dead_letter*; return False when the table holds its event already.

        The messages of an event that is published in several versions share one row. It keeps the message that a replay
        is most likely to help; the detail names the other ones, too.
        """
        id = _id(dead_letter)
        columns = (table.c.message_id, table.c.attempts, table.c.subject, table.c.error, table.c.detail)
        old = connection.execute(select(*columns).where(table.c.id == id).with_for_update()).first()
        row = row_of(id, dead_letter)
        if old is None:
            connection.execute(table.insert().values(row))
        elif old.subject != row["subject"]:
            connection.execute(update(table).where(table.c.id == id).values(with_other_version(old, row)))
            return False
        elif old.message_id != row["message_id"]:
            changes = {name: row[name] for name in ("message_id", "error", "detail", "last_seen")}
            changes["attempts"] = old.attempts + dead_letter.attempts
            connection.execute(update(table).where(table.c.id == id).values(changes))
        else:
            return False
        return True

    async def list(
        self, consumer: str | None, subject: str | None, after: str | None, limit: int, *, error: str | None = None
    ) -> Sequence[StoredDeadLetter]:
        """Return up to *limit* dead letters that match the given filters, in id order, beyond *after*."""
        found: list[StoredDeadLetter] = []
        for name, table in self._tables.items():
            conditions = _matching(table, consumer=consumer, subject=subject, error=error)
            if after is not None:
                conditions.append(table.c.id > after)
            query = select(table).where(*conditions).order_by(table.c.id).limit(limit)
            found += await self._stores[name].database.read(partial(_dead_letters, query))
        return sorted(found, key=lambda stored: stored.dead_letter.id)[:limit]

    async def get(self, id: str) -> StoredDeadLetter | None:
        """Return the dead letter *id*, from the archive if it is there, or None."""
        # Between the first two looks it may be moved from the archive into the table.
        return await self._find(id) or await self._find_archived(id) or await self._find(id)

    async def find(self, ids: Collection[str]) -> Sequence[StoredDeadLetter]:
        """Return those of the dead letters *ids* that exist and are not archived."""
        found: list[StoredDeadLetter] = []
        for name, table in self._tables.items() if ids else ():
            query = select(table).where(table.c.id.in_(ids)).order_by(table.c.id)
            found += await self._stores[name].database.read(partial(_dead_letters, query))
        return found

    async def _find(self, id: str) -> StoredDeadLetter | None:
        for name, table in self._tables.items():
            if found := await self._stores[name].database.read(partial(_dead_letters, select(table).where(table.c.id == id))):
                return found[0]
        return None

    async def _find_archived(self, id: str) -> StoredDeadLetter | None:
        archived = await self.archive.get(id)
        return None if archived is None else stored_dead_letter(SimpleNamespace(**archived))

    async def groups(self, consumer: str | None, subject: str | None, error: str | None) -> Sequence[DeadLetterGroup]:
        """Return the dead letters that match the given filters in groups, the largest first; without archived ones."""
        found: list[DeadLetterGroup] = []
        for name, table in self._tables.items():
            conditions = _matching(table, consumer=consumer, subject=subject, error=error)
            found += await self._stores[name].database.read(partial(groups_in, table, conditions))
        return grouped(found)

    async def replay(
        self, id: str, dry_run: bool = False, *, body: bytes | None = None, audit: Audit | None = None
    ) -> bool:
        """
        Put the event of a dead letter into the outbox again, under a new message id; with *dry_run*, change nothing.

        With *body*, a JSON text, the message has this body in place of its own; the dead letter keeps both.

        Return False when there is no such dead letter.

        Raises:
            NotReplayable: Its consumer subscribes to nothing.
            Rejected: *body* violates the schema of the dead letter's subject, or the subject has no schema.
        """
        stored = await self.get(id)
        if stored is not None and stored.dead_letter.consumer in self._not_replayable:
            raise NotReplayable(f"{stored.dead_letter.consumer} subscribes to nothing.")
        if stored is not None and body is not None:
            self._contracts.decode(stored.dead_letter.message.subject, body)
        if stored is None or dry_run:
            return stored is not None
        await self.archive.bring_back(id)
        return await self._replay_where(audit, body, id=id) > 0

    async def replay_many(
        self, consumer: str | None, subject: str | None, error: str | None, dry_run: bool, *, audit: Audit | None = None
    ) -> tuple[int, int]:
        """Replay all dead letters that match the given filters; return how many match and how many were replayed."""
        matched = 0
        for name, table in self._tables.items():
            conditions = self._replayable(table, consumer=consumer, subject=subject, error=error)
            query = select(func.count()).select_from(table).where(*conditions)
            matched += await self._stores[name].database.read(partial(_count, query))
        if dry_run:
            return matched, 0
        return matched, await self._replay_where(audit, None, consumer=consumer, subject=subject, error=error)

    async def discard(self, id: str, *, audit: Audit | None = None) -> bool:
        """Delete the dead letter *id*; return False when there is none. *audit* names who requests it."""
        await self.archive.bring_back(id)
        return await self._discard_where(audit, id=id) > 0

    async def discard_many(
        self, consumer: str | None, subject: str | None, error: str | None, dry_run: bool, *, audit: Audit | None = None
    ) -> tuple[int, int]:
        """Delete all dead letters that match the given filters; return how many match and how many were deleted."""
        filters = {"consumer": consumer, "subject": subject, "error": error}
        matched = 0
        for name, table in self._tables.items():
            query = select(func.count()).select_from(table).where(*_matching(table, **filters))
            matched += await self._stores[name].database.read(partial(_count, query))
        return matched, 0 if dry_run else await self._discard_where(audit, **filters)

    async def _discard_where(self, audit: Audit | None, **filters: str | None) -> int:
        """Delete what matches, `REPLAY_MAX` in one transaction."""
        discarded = 0
        for name, table in self._tables.items():
            store = self._stores[name]
            while True:
                count = await store.database.write(partial(self._discard, store, table, _matching(table, **filters), audit))
                discarded += count
                if count < REPLAY_MAX:
                    break
        return discarded

    def _discard(
        self, store: ModuleStore, table: Table, conditions: Conditions, audit: Audit | None, connection: Connection
    ) -> int:
        found = _dead_letters(select(table).where(*conditions).order_by(table.c.id).limit(REPLAY_MAX), connection)
        if audit is not None:
            changes = [(_shown(each.dead_letter), None, str(each.dead_letter.id)) for each in found]
            self._record(store, audit, changes, connection)
        return _rows_changed(delete(table).where(table.c.id.in_([each.dead_letter.id for each in found])), connection)

    def _record(
        self, store: ModuleStore, audit: Audit, changes: Sequence[tuple[Any, Any, str]], connection: Connection
    ) -> None:
        """Write to the audit, in the transaction of the change, what *changes* of each dead letter: from, to, id."""
        now = self._clock.now()
        rows = [audit_entry(evolve(audit, target=id), str(uuid7()), now, old, new) for old, new, id in changes]
        store.save(connection, states={}, inbox_entries=(), cancelled_timers=(), outgoing=(), audit=rows)

    def _replayable(self, table: Table, **filters: str | None) -> Conditions:
        return [*_matching(table, **filters), table.c.consumer.not_in(self._not_replayable)]

    async def _replay_where(self, audit: Audit | None, body: bytes | None, **filters: str | None) -> int:
        """Replay what matches, `REPLAY_MAX` in one transaction; the relay finds the rows in the outbox."""
        replayed = 0
        for name, table in self._tables.items():
            after = ""
            while True:
                conditions = self._replayable(table, **filters)
                replay = partial(self._replay, self._stores[name], table, conditions, after, body, audit)
                ids = await self._stores[name].database.write(replay)
                replayed += len(ids)
                if len(ids) < REPLAY_MAX:
                    break
                after = ids[-1]
        return replayed

    def _replay(
        self,
        store: ModuleStore,
        table: Table,
        conditions: Conditions,
        after: str,
        body: bytes | None,
        audit: Audit | None,
        connection: Connection,
    ) -> Ids:
        query = select(table).where(*conditions, table.c.id > after).order_by(table.c.id).limit(REPLAY_MAX)
        dead_letters = [stored.dead_letter for stored in _dead_letters(query, connection)]
        now = self._clock.now()
        rows = [outbox_message(each, each.message.body if body is None else body, now) for each in dead_letters]
        store.save(connection, states={}, inbox_entries=(), cancelled_timers=(), outgoing=rows)
        ids = [dead_letter.id for dead_letter in dead_letters]
        if audit is not None:
            changes = [(None, _shown(each) | _shown_edit(each, body), str(each.id)) for each in dead_letters]
            self._record(store, audit, changes, connection)
        edit = {} if body is None else {"edited_body": body}
        connection.execute(update(table).where(table.c.id.in_(ids)).values(replays=table.c.replays + 1, **edit))
        return ids


def _shown(dead_letter: DeadLetter) -> dict[str, str]:
    """Return what the audit shows of *dead_letter*: not the message, which holds customers' data."""
    return {"consumer": dead_letter.consumer, "subject": dead_letter.message.subject, "error": dead_letter.error}


def _shown_edit(dead_letter: DeadLetter, body: bytes | None) -> dict[str, str]:
    """Return what the audit shows of an edited *body*: which members differ, and which text it was."""
    if body is None:
        return {}
    return {"edited": ", ".join(changed_pointers(dead_letter.message.body, body)), "sha256": sha256(body).hexdigest()}


def _count(query: Select[Any], connection: Connection) -> int:
    count: int = connection.execute(query).scalar_one()
    return count


def _rows_changed(statement: Delete, connection: Connection) -> int:
    return connection.execute(statement).rowcount


def _id(dead_letter: DeadLetter) -> str:
    # Each version that was never published is a dead letter of its own: other consumers may need that version.
    is_message = is_unpublished(dead_letter.consumer)
    id = dead_letter.message.id if is_message else event_id_and_trace(dead_letter.message)[0]
    return derived_id(id, dead_letter.consumer)


def _matching(table: Table, **filters: str | None) -> Conditions:
    return [table.c[name] == value for name, value in filters.items() if value is not None]


def _dead_letters(query: Any, connection: Connection) -> list[StoredDeadLetter]:
    return [stored_dead_letter(row) for row in connection.execute(query)]


class NotReplayable(Exception):
    """The consumer of the dead letter subscribes to nothing, so a replay would have no recipient."""
