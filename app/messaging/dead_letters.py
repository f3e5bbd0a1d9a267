"""Where dead letters lie: one table per module, in the module's own database, so that they outlive the process."""

from __future__ import annotations

__all__ = ["DeadLetterOffice"]

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import orjson
from attrs import evolve
from loguru import logger
from sqlalchemy import ColumnElement, Connection, Delete, MetaData, Select, Table, delete, func, select, update
from uuid_utils import uuid7

from app.messaging.cloudevents import origin
from app.storage.module_store import Store
from app.storage.outbox import Parcel, tables_of
from app.storage.state_rows import instant
from app.telemetry.metrics import Metrics
from app.web.endpoints.dead_letters import KeptLetter, NotReplayable
from bus.ids import caused_id
from bus.port import Clock, DeadLetter, Message
from bus.replay_subjects import is_stray, module_of, original, replay_subject

Conditions = list[ColumnElement[bool]]
Ids = list[str]

REPLAY_MAX = 500
"""Letters that are replayed in one transaction."""

DETAIL_MAX = 8_192
"""Characters that are kept of what somebody had to say."""


class DeadLetterOffice:
    """
    The bus's `bus.port.DeadLetters` and the web's `app.web.DeadLetterDesk` in one.

    A letter belongs to the module whose consumer gave up (``orders`` of ``orders`` and ``orders-express``). It is known
    by consumer and event: a replay that fails again makes no second one, it brings the first one up to date.
    """

    def __init__(
        self, stores: Mapping[str, Store], clock: Clock, metrics: Metrics, unheard: Collection[str] = ()
    ) -> None:
        """Open it; consumers that are *unheard* lay letters down here and hear nothing, so none can be replayed."""
        self._stores = dict(stores)
        self._unheard = frozenset(unheard)
        self._tables: dict[str, Table] = {name: tables_of(name, MetaData())[2] for name in stores}
        self._clock = clock
        self._metrics = metrics

    async def add(self, letter: DeadLetter) -> None:
        """Keep *letter*, under the subject of what was first said; see `bus.port.DeadLetters`."""
        letter = evolve(letter, message=evolve(letter.message, subject=original(letter.message.subject)))
        name = module_of(letter.consumer)
        if not await self._stores[name].database.write(partial(self._add, self._tables[name], letter)):
            return
        self._metrics.dead_letters.labels(letter.consumer, letter.message.subject).inc()
        logger.error(
            "dead letter", id=_id(letter), consumer=letter.consumer, subject=letter.message.subject,
            error=letter.error, detail=letter.detail, attempts=letter.attempts,
            correlation_id=letter.message.headers.get("ce-correlationid"),
        )  # fmt: skip

    @staticmethod
    def _add(table: Table, letter: DeadLetter, connection: Connection) -> bool:
        """Write *letter* down; say whether it is news."""
        id = _id(letter)
        known = select(table.c.message_id, table.c.attempts).where(table.c.id == id).with_for_update()
        old = connection.execute(known).first()
        row = _row(id, letter)
        if old is None:
            connection.execute(table.insert().values(row))
        elif old.message_id != row["message_id"]:
            changes = {name: row[name] for name in ("message_id", "error", "detail", "last_seen")}
            changes["attempts"] = old.attempts + letter.attempts
            connection.execute(update(table).where(table.c.id == id).values(changes))
        else:
            return False
        return True

    async def list(
        self, consumer: str | None, subject: str | None, after: str | None, limit: int, *, error: str | None = None
    ) -> Sequence[KeptLetter]:
        """Return up to *limit* letters that fit what is not None, by id, beyond *after*."""
        found: list[KeptLetter] = []
        for name, table in self._tables.items():
            wanted = _fitting(table, consumer=consumer, subject=subject, error=error)
            if after is not None:
                wanted.append(table.c.id > after)
            query = select(table).where(*wanted).order_by(table.c.id).limit(limit)
            found += await self._stores[name].database.read(partial(_letters, query))
        return sorted(found, key=lambda kept: kept.letter.id)[:limit]

    async def get(self, id: str) -> KeptLetter | None:
        """Return one letter."""
        for name, table in self._tables.items():
            query = select(table).where(table.c.id == id)
            if found := await self._stores[name].database.read(partial(_letters, query)):
                return found[0]
        return None

    async def replay(self, id: str, dry_run: bool = False) -> bool:
        """
        Put a letter's event into the outbox again, under a fresh message id; with *dry_run* only say whether it would go.

        Raises:
            NotReplayable: Its consumer hears nothing.
        """
        kept = await self.get(id)
        if kept is not None and kept.letter.consumer in self._unheard:
            raise NotReplayable(f"{kept.letter.consumer} hears nothing.")
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

    def _replay(self, store: Store, table: Table, wanted: Conditions, after: str, connection: Connection) -> Ids:
        query = select(table).where(*wanted, table.c.id > after).order_by(table.c.id).limit(REPLAY_MAX)
        letters = [kept.letter for kept in _letters(query, connection)]
        now = self._clock.now()
        store.save(
            connection, states={}, heard=(), withdrawn=(), said=[_parcel(letter, now) for letter in letters]
        )
        ids = [letter.id for letter in letters]
        connection.execute(update(table).where(table.c.id.in_(ids)).values(replays=table.c.replays + 1))
        return ids


def _count(query: Select[Any], connection: Connection) -> int:
    count: int = connection.execute(query).scalar_one()
    return count


def _rows_changed(statement: Delete, connection: Connection) -> int:
    return connection.execute(statement).rowcount


def _id(letter: DeadLetter) -> str:
    return caused_id(origin(letter.message)[0], letter.consumer)


def _fitting(table: Table, **wanted: str | None) -> Conditions:
    return [table.c[name] == value for name, value in wanted.items() if value is not None]


def _row(id: str, letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": id,
        "consumer": _kept(letter.consumer),
        "subject": _kept(letter.message.subject),
        "error": _kept(letter.error, 64),
        "detail": _kept(letter.detail, DETAIL_MAX),
        "attempts": letter.attempts,
        "first_seen": letter.first_seen,
        "last_seen": letter.last_seen,
        "replays": 0,
        "message_id": _kept(letter.message.id),
        "message_key": _kept(letter.message.key),
        "message_headers": orjson.dumps({_kept(k): _kept(v, DETAIL_MAX) for k, v in letter.message.headers.items()}).decode(),
        "message_body": letter.message.body,
    }


def _kept(text: str, most: int = 255) -> str:
    """Return *text* as every database can keep it: what comes from outside may be anything."""
    text = text if text.isascii() else text.encode("utf-8", "replace").decode()
    return text.replace("\0", "\ufffd")[:most]


def _letters(query: Any, connection: Connection) -> list[KeptLetter]:
    return [
        KeptLetter(
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


def _parcel(letter: DeadLetter, now: datetime) -> Parcel:
    """Return a new message that carries the old event, to whoever gave up on it."""
    message, consumer = letter.message, letter.consumer
    headers = message.headers
    event_id, context = origin(message)
    return Parcel(
        id=str(uuid7()),
        event_id=event_id,
        # A stray was nobody's: it is said again to all, now that somebody may know it.
        subject=message.subject if is_stray(consumer) else replay_subject(consumer, message.subject),
        key=message.key[:64],
        body=message.body,
        name=None,
        correlation_id=context.correlation_id,
        causation_id=_kept(headers.get("ce-causationid") or event_id),
        traceparent=context.traceparent,
        occurred_at=_occurred_at(headers.get("ce-time"), now),
        due_at=instant(now),
    )


def _occurred_at(text: str | None, now: datetime) -> str:
    try:
        return instant(_aware(datetime.fromisoformat(text or "")))
    except ValueError:
        return instant(now)
