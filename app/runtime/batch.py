"""
Process one batch of one module inside a transaction: load, decide, stage, flush.

The inbox drops events that the module has processed before. Every state that the batch needs is loaded with one select
per table; the module then decides about one event after the other, and each decision sees the states that the ones
before it have left. `BatchProcessor.flush` writes everything that has changed with one statement per table. An event
that cannot be decided fails alone.

With a `DeadLetterLine`, an event whose key is held by a dead letter fails, too, unless its turn has come.
"""

from __future__ import annotations

__all__ = ["BatchProcessor", "new_keys"]

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection

from app.messaging.dead_letters.line import DeadLetterLine, Hold, WaitsForDeadLetter, hold_id
from app.runtime.service import IdempotencyKeyReused, Reply
from app.runtime.work import DeferredToNewerVersion, ItemResult, OutgoingEvent, UnitOfWork, WorkItem
from app.storage.audit import audit_entry, changes
from app.storage.module_store import ModuleStore, ProcessedIds, recent_id_range, time_ordered_id_range
from app.storage.state_rows import to_db_timestamp
from app.storage.tables import DUE_NOW, InboxEntry
from bus.contracts.registry import ContractRegistry
from modules.module import CancelTimer, Decision, DecisionOutcome, Key, Module, Scheduled
from modules.routes import Rejection, Response


class BatchProcessor:
    """Decide about batches of one module and write what follows."""

    def __init__(
        self, module: Module, store: ModuleStore, contracts: ContractRegistry, line: DeadLetterLine | None = None
    ) -> None:
        self._line = line
        self._module = module
        self._store = store
        self._contracts = contracts
        self._key_of = {cls: mapper.key_of for cls, mapper in store.mappers.items()}

    def decide(
        self, items: Sequence[WorkItem], unit: UnitOfWork, now: datetime, connection: Connection
    ) -> tuple[list[ItemResult], list[OutgoingEvent]]:
        """
        Decide about *items* in their order; *unit* may already hold work of the same transaction.

        Return a result for each item, and the events that are due now; scheduled events stay in the unit of work.
        """
        db_now = to_db_timestamp(now)
        keys_of = self._module.keys
        keys = [keys_of(item.event) for item in items]
        processed = self._load(items, keys, unit, now, connection)
        due: list[OutgoingEvent] = []
        if self._line is not None and (holds := self._line.holds(processed)):
            results = [
                self._decide_in_turn(item, item_keys, processed, unit, now, db_now, due, holds)
                for item, item_keys in zip(items, keys, strict=True)
            ]
            return results, unit.without_cancelled(due)
        results = [
            self._decide_one(item, item_keys, processed, unit, now, db_now, due)
            for item, item_keys in zip(items, keys, strict=True)
        ]
        return results, unit.without_cancelled(due)

    def flush(self, unit: UnitOfWork, now: datetime, connection: Connection, *, is_first: bool = True) -> bool:
        """
        Write the unit of work; an event that is delivered locally leaves no row in outbox and inbox, only in the history.

        Set *is_first* to False if another module has written history in this transaction. Return whether any has now.

        Raises:
            Invalid: An event that the bus has to carry breaks the schema of an older version.
        """
        db_now, (first_id, end_id) = to_db_timestamp(now), time_ordered_id_range(now)
        entries = []
        for item, stored_reply in unit.inbox_entries:
            if item.cause is None or not item.cause.is_delivered_locally:
                id = item.inbox_id or item.id
                is_untimed = item.fingerprint is not None or not first_id <= id < end_id
                entries.append(InboxEntry(id, db_now, int(is_untimed), item.fingerprint, stored_reply))
        self._store.save(
            connection,
            states=unit.changed,
            new_keys=unit.new_keys,
            inbox_entries=entries,
            cancelled_timers=unit.cancelled_timers,
            audit=unit.audit,
            outgoing=[
                message
                for event in unit.outgoing
                if not event.is_delivered_locally
                for message in event.to_messages(self._contracts)
            ],
        )
        if unit.line_decided and self._line is not None:
            self._line.advance(connection, unit.line_decided, now)
        if not unit.history:
            return not is_first
        unit.record_unpublished()
        # Last, when every state is locked: see `app.storage.archive.history_table`.
        self._store.append_history(connection, db_now, unit.history, is_next=is_first)
        return True

    def _load(
        self, items: Sequence[WorkItem], keys: Sequence[Sequence[Key]], unit: UnitOfWork, now: datetime, connection: Connection
    ) -> ProcessedIds:
        """Load into *unit* the states that *items* need; return what the inbox knows of the items."""
        missing = unit.missing_keys(keys)
        inbox_ids = [item.inbox_id for item in items if item.inbox_id is not None]
        if self._line is not None:
            inbox_ids += dict.fromkeys([id for item in items if (id := hold_id(_key(item))) is not None])
        processed, found = self._store.load_with_inbox(connection, inbox_ids, missing)
        if old := unit.load(missing, found, recent_id_range(now)):
            unit.restore(self._store.archive.load_all(connection, old))
        return processed

    def _decide_in_turn(
        self,
        item: WorkItem,
        keys: Sequence[Key],
        processed: ProcessedIds,
        unit: UnitOfWork,
        now: datetime,
        db_now: str,
        due: list[OutgoingEvent],
        holds: Mapping[str, Hold],
    ) -> ItemResult:
        """Decide about *item* unless it waits for a dead letter; see `app.messaging.dead_letters.line`."""
        key = _key(item)
        hold = holds.get(hold_id(key) or "")
        is_its_turn = hold is None or hold.event_id == item.id or item.inbox_id in processed or item.defers_to_newer
        if hold is not None and not is_its_turn:
            return ItemResult(error=WaitsForDeadLetter(hold.reason))
        result = self._decide_one(item, keys, processed, unit, now, db_now, due)
        if hold is not None and hold.event_id == item.id and result.error is None:
            unit.line_decided.append((key, item.id))
        return result

    def _decide_one(
        self,
        item: WorkItem,
        keys: Sequence[Key],
        processed: ProcessedIds,
        unit: UnitOfWork,
        now: datetime,
        db_now: str,
        due: list[OutgoingEvent],
    ) -> ItemResult:
        """Decide about *item*; what follows joins *unit*, and *due* if it is due now."""
        inbox_id = item.inbox_id
        if inbox_id is not None and inbox_id in processed:
            return _replay(item, *processed[inbox_id])
        if item.defers_to_newer:
            return ItemResult(error=DeferredToNewerVersion("a newer version of this event is still to come"))
        states, key_of, reply = unit.identity_map, self._key_of, None
        try:
            decision = self._module.decide([states[cls][key] for cls, key in keys], item.event, now)
            changed = [(type(state), key_of[type(state)](state), state) for state in decision.states]
            if item.respond is not None:
                after = {(cls, key): state for cls, key, state in changed}
                outcome = DecisionOutcome(tuple([after.get(key) or states[key[0]][key[1]] for key in keys]), decision.emitted)
                reply = Reply(item.respond(outcome))
            emitted: Sequence[OutgoingEvent] = ()
            if decision.events:
                emitted = self._stage(item, decision, keys[0][1] if keys else "", unit, db_now, due)
        except Exception as error:  # an exception of a decision concerns this event alone
            return ItemResult(error=error)
        if item.audit is not None and (changed or decision.events) and not _is_rejected(reply):
            pairs = [(states[cls].get(key), state) for cls, key, state in changed]
            unit.audit.append(audit_entry(item.audit, item.id, now, *changes(pairs)))
        for cls, key, state in changed:
            states[cls][key] = unit.changed[cls][key] = state
        unit.history.append(self._entry(item, bool(changed), emitted))
        if item.cause is not None:
            unit.inbox_entries.append((item, None))
        elif inbox_id is not None and not _is_rejected(reply):
            stored_reply = None
            if item.fingerprint is not None and reply is not None:
                stored_reply = _encode_response(reply.response)
            unit.inbox_entries.append((item, stored_reply))
            processed[inbox_id] = item.fingerprint, stored_reply
        return ItemResult(decision, reply, emitted=emitted)

    def _entry(self, item: WorkItem, has_changed: bool, emitted: Sequence[OutgoingEvent]) -> list[Any]:
        """Return the entry of the history for a decision; `app.storage.archive.history_content` describes it."""
        cause = item.cause
        entry: list[Any] = ["l", cause.record[0], item.subject] if cause is not None else self._whole(item)
        if emitted:
            first = emitted[0]
            key = first.key
            entry += first.is_express, 0 if first.value.get("order_id") == key else key, [each.record for each in emitted]
        elif not has_changed:
            entry.append(0)
        return entry

    def _whole(self, item: WorkItem) -> list[Any]:
        """Return the beginning of the entry for an *item* from outside the transaction, which holds the whole event."""
        event, trace = item.event, item.origin_trace
        kind = "s" if item.delivery is None else "b"
        name = getattr(event, "__subject__", None) or type(event).__name__
        # Under the subject of the class that the module reads: an older version was converted to it.
        return [kind, name, item.id, trace.correlation_id, item.is_express, self._contracts.to_plain(event)]

    def _stage(
        self, item: WorkItem, decision: Decision, key: str, unit: UnitOfWork, db_now: str, due: list[OutgoingEvent]
    ) -> list[OutgoingEvent]:
        """
        Put into *unit* the events that *decision* emits and the timers that it cancels, and into *due* the events due now.

        Return all the events.

        Raises:
            Invalid: An event breaks its schema; then *unit* is unchanged.
        """
        is_express = item.is_express if decision.express is None else decision.express
        producer, contracts, positions = self._module.name, self._contracts, unit.positions
        events: list[OutgoingEvent] = []
        timers: list[str] = []
        cancelled: list[str] = []
        has_scheduled = False
        for ordinal, event in enumerate(decision.events):
            timer, due_at = None, DUE_NOW
            if type(event) is Scheduled:
                timer, due_at, event = event.timer or None, to_db_timestamp(event.due_at), event.event
                if due_at <= db_now:
                    due_at = DUE_NOW
                if timer is not None:
                    timers.append(timer)
            elif type(event) is CancelTimer:
                cancelled.append(event.timer)
                continue
            if hasattr(event, "__subject__"):
                value, subject = contracts.to_json(event), event.__subject__
                if due_at is DUE_NOW:
                    record: list[Any] = [next(positions), ordinal, subject, value]
                else:
                    record, has_scheduled = [None, ordinal, subject, value, due_at], True
                events.append(
                    OutgoingEvent(event, value, item, producer, ordinal, is_express, key, db_now, due_at, record, timer)
                )
        if cancelled:
            unit.cancel_timers(cancelled)
        unit.timer_names.update(timers)
        unit.outgoing += events
        due += [event for event in events if event.due_at is DUE_NOW] if has_scheduled else events
        return events


def _key(item: WorkItem) -> str:
    """Return the key of the message that brings *item*; empty if a caller has submitted it: that waits for nothing."""
    if item.delivery is not None:
        return item.delivery.message.key
    return "" if item.cause is None else item.cause.key


def new_keys(items: Sequence[WorkItem]) -> frozenset[str]:
    """Return the keys that were generated for *items*."""
    return frozenset([item.new_key for item in items if item.new_key is not None])


def _is_rejected(reply: Reply | None) -> bool:
    return reply is not None and isinstance(reply.response, Rejection)


def _replay(item: WorkItem, fingerprint: str | None, stored_reply: str | None) -> ItemResult:
    """Return the result for an item that the inbox knows."""
    if item.fingerprint is not None and item.fingerprint != fingerprint:
        return ItemResult(error=IdempotencyKeyReused("This idempotency key was used for another request."))
    if stored_reply is None:
        return ItemResult(reply=Reply(Response(200, None), is_replay=True))
    return ItemResult(reply=Reply(Response(**orjson.loads(stored_reply)), is_replay=True))


def _encode_response(response: Response | Rejection) -> str:
    assert isinstance(response, Response)
    return orjson.dumps({"status": response.status, "body": response.body, "headers": dict(response.headers)}).decode()
