"""
Store dead letters, one table per module in the module's own database, so that they survive a restart on either bus.

A dead letter belongs to the module whose consumer gave up: ``orders`` for ``orders`` and ``orders-express``. Its id is
derived from the consumer and the event, so a replay that fails again updates the stored dead letter.
"""

from __future__ import annotations

__all__ = ["ERRORS", "DeadLetterStore", "NotReplayable"]

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

from attrs import evolve
from loguru import logger
from sqlalchemy import Connection, Select, Table, and_, false, func, not_, select

from app.messaging.dead_letters.archive import DeadLetterArchive
from app.messaging.dead_letters.dead_letter_table import (
    REPLAY_MAX,
    Conditions,
    DeadLetterTable,
    dead_letter_id,
    dead_letters_in,
)
from app.messaging.dead_letters.groups import DeadLetterGroup, grouped, groups_in
from app.messaging.dead_letters.line import WaitsForDeadLetter
from app.messaging.dead_letters.rows import UNREADABLE, StoredDeadLetter, stored_dead_letter
from app.storage.audit import Audit
from app.storage.module_store import ModuleStore
from app.telemetry.metrics import Metrics
from bus.contracts.registry import ContractRegistry
from bus.port import WAITS, Clock, DeadLetter
from bus.subjects import module_of, original_subject

ERRORS = UNREADABLE | {
    *("failed", "no_answer", "not_publishable", WAITS),
    # of webhooks
    *("nonsense", "not_asked_for", "two_charges", "unknown_order", "wrong_amount", "wrong_currency", "wrong_id"),
    *("not_captured", "partly_refunded", "refunded_elsewhere"),  # of webhooks, in releases before 0.3.0
}
"""Every error code that a dead letter can have; docs/reference/dead-letters.rst and docs/howto/payments.rst explain them."""


class DeadLetterStore:
    """The dead letters of all modules of this process: `bus.port.DeadLetters` for the bus, `DeadLetterService` for the API."""

    def __init__(
        self,
        stores: Mapping[str, ModuleStore],
        contracts: ContractRegistry,
        clock: Clock,
        metrics: Metrics,
        not_replayable: Collection[str] = (),
        *,
        keeps_order: bool = False,
    ) -> None:
        """
        Keep the dead letters in *stores*.

        *not_replayable* names the consumers that store dead letters but subscribe to nothing, such as a webhook. With
        *keeps_order* a dead letter holds its key; see `app.messaging.dead_letters.line`.
        """
        self._stores = dict(stores)
        self._contracts = contracts
        self._not_replayable = frozenset(not_replayable)
        self._letters = {name: DeadLetterTable(store, clock, keeps_order=keeps_order) for name, store in stores.items()}
        self._tables: dict[str, Table] = {name: letters.table for name, letters in self._letters.items()}
        self._keeps_order = keeps_order
        self.archive = DeadLetterArchive(self._stores, self._tables)
        self._clock = clock
        self._metrics = metrics

    async def add(self, dead_letter: DeadLetter) -> None:
        """Store *dead_letter* under the original subject of its message; see `bus.port.DeadLetters.add`."""
        dead_letter = evolve(dead_letter, message=evolve(dead_letter.message, subject=original_subject(dead_letter.message.subject)))
        name = module_of(dead_letter.consumer)
        if not await self._stores[name].database.write(partial(self._letters[name].add, dead_letter)):
            return
        self._metrics.dead_letters.labels(dead_letter.consumer, dead_letter.message.subject).inc()
        logger.error(
            "dead letter", id=dead_letter_id(dead_letter), consumer=dead_letter.consumer, subject=dead_letter.message.subject,
            error=dead_letter.error, detail=dead_letter.detail, attempts=dead_letter.attempts,
            correlation_id=dead_letter.message.headers.get("ce-correlationid"),
        )  # fmt: skip

    async def free_keys(self) -> None:
        """Without *keeps_order*, publish again what has waited behind dead letters until now; call it at a start."""
        for name, letters in self._letters.items() if not self._keeps_order else ():
            database = self._stores[name].database
            if await database.read(letters.line.is_any_held):
                count = await database.write(partial(letters.line.dissolve, now=self._clock.now()))
                logger.warning("DEAD_LETTER_ORDER is none: events wait no longer for dead letters", module=name, events=count)

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
            found += await self._stores[name].database.read(partial(dead_letters_in, query))
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
            found += await self._stores[name].database.read(partial(dead_letters_in, query))
        return found

    async def _find(self, id: str) -> StoredDeadLetter | None:
        for name, table in self._tables.items():
            if found := await self._stores[name].database.read(partial(dead_letters_in, select(table).where(table.c.id == id))):
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

        One that holds its key behind another one is published when its turn comes.

        Raises:
            WaitsForDeadLetter: It waits for another dead letter only, and is published after that.
            NotReplayable: Its consumer subscribes to nothing.
            Rejected: *body* violates the schema of the dead letter's subject, or the subject has no schema.
        """
        stored = await self.get(id)
        if stored is not None and stored.dead_letter.consumer in self._not_replayable:
            raise NotReplayable(f"{stored.dead_letter.consumer} subscribes to nothing.")
        if stored is not None and stored.is_in_line and stored.dead_letter.error == WAITS:
            await self._check_turn(stored.dead_letter)
        if stored is not None and body is not None:
            self._contracts.decode(stored.dead_letter.message.subject, body)
        if stored is None or dry_run:
            return stored is not None
        await self.archive.bring_back(id)
        return await self._replay_where(audit, body, id=id) > 0

    async def _check_turn(self, dead_letter: DeadLetter) -> None:
        name = module_of(dead_letter.consumer)
        hold = await self._stores[name].database.write(partial(self._letters[name].line.first, key=dead_letter.message.key))
        if hold is not None and hold.dead_letter_id != dead_letter.id:
            raise WaitsForDeadLetter(f"It {hold.reason} and is published after it: replay or discard that one.")

    async def replay_many(
        self, consumer: str | None, subject: str | None, error: str | None, dry_run: bool, *, audit: Audit | None = None
    ) -> tuple[int, int]:
        """
        Replay all dead letters that match the given filters; return how many match and how many were replayed.

        What waits for another dead letter only does not match: it follows that one.
        """
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
            discard = partial(self._letters[name].discard, _matching(table, **filters), audit)
            while True:
                count = await self._stores[name].database.write(discard)
                discarded += count
                if count < REPLAY_MAX:
                    break
        return discarded

    def _replayable(self, table: Table, **filters: str | None) -> Conditions:
        only_waits = table.c.error == WAITS, table.c.place.is_not(None)
        is_left_out = and_(*only_waits) if filters.keys() != {"id"} else false()
        return [*_matching(table, **filters), table.c.consumer.not_in(self._not_replayable), not_(is_left_out)]

    async def _replay_where(self, audit: Audit | None, body: bytes | None, **filters: str | None) -> int:
        """Replay what matches, `REPLAY_MAX` in one transaction; the relay finds the rows in the outbox."""
        replayed = 0
        for name, table in self._tables.items():
            after = ""
            while True:
                conditions = self._replayable(table, **filters)
                replay = partial(self._letters[name].replay, conditions, after, body, audit)
                ids = await self._stores[name].database.write(replay)
                replayed += len(ids)
                if len(ids) < REPLAY_MAX:
                    break
                after = ids[-1]
        return replayed


def _count(query: Select[Any], connection: Connection) -> int:
    count: int = connection.execute(query).scalar_one()
    return count


def _matching(table: Table, **filters: str | None) -> Conditions:
    return [table.c[name] == value for name, value in filters.items() if value is not None]


class NotReplayable(Exception):
    """The consumer of the dead letter subscribes to nothing, so a replay would have no recipient."""
