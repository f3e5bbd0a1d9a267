"""Where dead letters lie: one table per module, in the module's own database, so that they outlive the process."""

from __future__ import annotations

__all__ = ["DeadLetterStore", "NotReplayable", "StoredDeadLetter"]

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson
from attrs import evolve, frozen
from loguru import logger
from sqlalchemy import ColumnElement, Connection, Delete, MetaData, Select, Table, delete, func, select, update
from uuid_utils import uuid7

from app.messaging.cloudevents import event_id_and_trace
from app.storage.module_store import ModuleStore
from app.storage.outbox import OutboxMessage
from app.storage.state_rows import to_db_timestamp
from app.storage.tables import message_tables
from app.telemetry.metrics import Metrics
from bus.ids import derived_id
from bus.port import Clock, DeadLetter, Message
from bus.replay_subjects import is_unroutable, module_of, original_subject, replay_subject

Conditions = list[ColumnElement[bool]]
Ids = list[str]

REPLAY_MAX = 500
"""Letters that are replayed in one transaction."""

DETAIL_MAX = 8_192
"""Characters that are kept of what somebody had to say."""


class DeadLetterStore:
    """
    The bus's `bus.port.DeadLetters` and the web's `app.web.DeadLetterService` in one.

    A letter belongs to the module whose consumer gave up (``orders`` of ``orders`` and ``orders-express``). It is known
    by consumer and event: a replay that fails again makes no second one, it brings the first one up to date.
    """

    def __init__(
        self, stores: Mapping[str, ModuleStore], clock: Clock, metrics: Metrics, unheard: Collection[str] = ()
    ) -> None:
        """Open it; consumers that are *unheard* lay letters down here and hear nothing, so none can be replayed."""
        self._stores = dict(stores)
        self._unheard = frozenset(unheard)
        self._tables: dict[str, Table] = {name: message_tables(name, MetaData())[2] for name in stores}
        self._clock = clock
        self._metrics = metrics

    async def add(self, dead_letter: DeadLetter) -> None:
        """Keep *letter*, under the subject of what was first said; see `bus.port.DeadLetters`."""
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
        """Write *letter* down; say whether it is news."""
        id = _id(dead_letter)
        known = select(table.c.message_id, table.c.attempts).where(table.c.id == id).with_for_update()
        old = connection.execute(known).first()
        row = _row(id, dead_letter)
        if old is None:
            connection.execute(table.insert().values(row))
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
        """Return up to *limit* letters that fit what is not None, by id, beyond *after*."""
        found: list[StoredDeadLetter] = []
        for name, table in self._tables.items():
            wanted = _fitting(table, consumer=consumer, subject=subject, error=error)
            if after is not None:
                wanted.append(table.c.id > after)
            query = select(table).where(*wanted).order_by(table.c.id).limit(limit)
            found += await self._stores[name].database.read(partial(_dead_letters, query))
        return sorted(found, key=lambda kept: kept.dead_letter.id)[:limit]

    async def get(self, id: str) -> StoredDeadLetter | None:
        """Return one letter."""
        for name, table in self._tables.items():
            query = select(table).where(table.c.id == id)
            if found := await self._stores[name].database.read(partial(_dead_letters, query)):
                return found[0]
        return None

    async def replay(self, id: str, dry_run: bool = False) -> bool:
        """
        Put a letter's event into the outbox again, under a fresh message id; with *dry_run* only say whether it would go.

        Raises:
            NotReplayable: Its consumer hears nothing.
        """
        kept = await self.get(id)
        if kept is not None and kept.dead_letter.consumer in self._unheard:
            raise NotReplayable(f"{kept.dead_letter.consumer} hears nothing.")
        return kept is not None and (dry_run or await self._replay_where(id=id) > 0)

    async def replay_many(
        self, consumer: str | None, subject: str | None, error: str | None, dry_run: bool
    ) -> tuple[int, int]:
        """Replay every letter that fits what is not None; return how many fit, and how many went."""
        matched = 0
        for name, table in self._tables.items():
            wanted = self._replayable(table, consumer=consumer, subject=subject, error=error)
            query = select(func.count()).select_from(table).where(*wanted)
            matched += await self._stores[name].database.read(partial(_count, query))
        if dry_run:
            return matched, 0
        return matched, await self._replay_where(consumer=consumer, subject=subject, error=error)

    async def discard(self, id: str) -> bool:
        """Throw a letter away for good."""
        gone = 0
        for name, table in self._tables.items():
            statement = delete(table).where(table.c.id == id)
            gone += await self._stores[name].database.write(partial(_rows_changed, statement))
        return gone > 0

    def _replayable(self, table: Table, **wanted: str | None) -> Conditions:
        return [*_fitting(table, **wanted), table.c.consumer.not_in(self._unheard)]

    async def _replay_where(self, **wanted: str | None) -> int:
        """Replay what fits, `REPLAY_MAX` letters a transaction; the relay finds them in the outbox."""
        replayed = 0
        for name, table in self._tables.items():
            after = ""
            while True:
                replay = partial(self._replay, self._stores[name], table, self._replayable(table, **wanted), after)
                ids = await self._stores[name].database.write(replay)
                replayed += len(ids)
                if len(ids) < REPLAY_MAX:
                    break
                after = ids[-1]
        return replayed

    def _replay(self, store: ModuleStore, table: Table, wanted: Conditions, after: str, connection: Connection) -> Ids:
        query = select(table).where(*wanted, table.c.id > after).order_by(table.c.id).limit(REPLAY_MAX)
        letters = [kept.dead_letter for kept in _dead_letters(query, connection)]
        now = self._clock.now()
        store.save(
            connection, states={}, inbox_entries=(), cancelled_timers=(), outgoing=[_outbox_message(dead_letter, now) for dead_letter in letters]
        )
        ids = [dead_letter.id for dead_letter in letters]
        connection.execute(update(table).where(table.c.id.in_(ids)).values(replays=table.c.replays + 1))
        return ids


def _count(query: Select[Any], connection: Connection) -> int:
    count: int = connection.execute(query).scalar_one()
    return count


def _rows_changed(statement: Delete, connection: Connection) -> int:
    return connection.execute(statement).rowcount


def _id(dead_letter: DeadLetter) -> str:
    return derived_id(event_id_and_trace(dead_letter.message)[0], dead_letter.consumer)


def _fitting(table: Table, **wanted: str | None) -> Conditions:
    return [table.c[name] == value for name, value in wanted.items() if value is not None]


def _row(id: str, dead_letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": id,
        "consumer": _stored(dead_letter.consumer),
        "subject": _stored(dead_letter.message.subject),
        "error": _stored(dead_letter.error, 64),
        "detail": _stored(dead_letter.detail, DETAIL_MAX),
        "attempts": dead_letter.attempts,
        "first_seen": dead_letter.first_seen,
        "last_seen": dead_letter.last_seen,
        "replays": 0,
        "message_id": _stored(dead_letter.message.id),
        "message_key": _stored(dead_letter.message.key),
        "message_headers": orjson.dumps({_stored(k): _stored(v, DETAIL_MAX) for k, v in dead_letter.message.headers.items()}).decode(),
        "message_body": dead_letter.message.body,
    }


def _stored(text: str, most: int = 255) -> str:
    """Return *text* as every database can keep it: what comes from outside may be anything."""
    text = text if text.isascii() else text.encode("utf-8", "replace").decode()
    return text.replace("\0", "\ufffd")[:most]


def _dead_letters(query: Any, connection: Connection) -> list[StoredDeadLetter]:
    return [
        StoredDeadLetter(
            DeadLetter(
                id=row.id,
                consumer=row.consumer,
                message=Message(
                    row.subject, row.message_id, row.message_body, row.message_key, orjson.loads(row.message_headers)
                ),
                error=row.error,
                detail=row.detail,
                attempts=row.attempts,
                first_seen=_aware(row.first_seen),
                last_seen=_aware(row.last_seen),
            ),
            row.replays,
        )
        for row in connection.execute(query)
    ]


def _aware(at: datetime) -> datetime:
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _outbox_message(dead_letter: DeadLetter, now: datetime) -> OutboxMessage:
    """Return a new message that carries the old event, to whoever gave up on it."""
    message, consumer = dead_letter.message, dead_letter.consumer
    headers = message.headers
    event_id, context = event_id_and_trace(message)
    return OutboxMessage(
        id=str(uuid7()),
        event_id=event_id,
        # A stray was nobody's: it is said again to all, now that somebody may know it.
        subject=message.subject if is_unroutable(consumer) else replay_subject(consumer, message.subject),
        key=message.key[:64],
        body=message.body,
        timer=None,
        correlation_id=context.correlation_id,
        causation_id=_stored(headers.get("ce-causationid") or event_id),
        traceparent=context.traceparent,
        occurred_at=_occurred_at(headers.get("ce-time"), now),
        due_at=to_db_timestamp(now),
    )


def _occurred_at(text: str | None, now: datetime) -> str:
    try:
        return to_db_timestamp(_aware(datetime.fromisoformat(text or "")))
    except ValueError:
        return to_db_timestamp(now)


class NotReplayable(Exception):
    """There is nobody to send a letter to; its message names the consumer."""


@frozen
class StoredDeadLetter:
    """A dead letter on the desk, and how often it has been sent again."""

    dead_letter: DeadLetter
    replays: int = 0
