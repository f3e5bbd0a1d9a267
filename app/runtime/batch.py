"""
One batch, thought through: claim, load, decide, write, all in somebody's transaction.

What was heard before drops out, the states that are needed are brought together, the module decides about one event
after the other, and everything that has changed is written with one statement per table. An event that cannot be
decided loses only itself.
"""

from __future__ import annotations

__all__ = ["BatchProcessor", "new_keys"]

from collections.abc import Sequence
from datetime import datetime

import orjson
from sqlalchemy import Connection

from app.runtime.errors import IdempotencyKeyReused
from app.runtime.service import Reply
from app.runtime.unit_of_work import UnitOfWork
from app.runtime.work import DeferredToNewerVersion, ItemResult, OutgoingEvent, WorkItem
from app.storage.module_store import InboxEntry, ModuleStore, time_ordered_id_range
from app.storage.outbox import OutboxMessage
from app.storage.state_rows import to_db_timestamp
from bus.contracts.registry import ContractRegistry
from bus.port import Clock
from modules.module import CancelTimer, Decision, DecisionOutcome, Module, Scheduled
from modules.routes import Rejection, Response


class BatchProcessor:
    """Think a batch of one module through."""

    def __init__(self, module: Module, store: ModuleStore, contracts: ContractRegistry, clock: Clock) -> None:
        self._module = module
        self._store = store
        self.contracts = contracts
        self._clock = clock
        self._keys_of = {cls: rows.key_of for cls, rows in store.mappers.items()}

    def __call__(self, batch: Sequence[WorkItem], connection: Connection) -> tuple[list[ItemResult], list[OutboxMessage]]:
        """Decide about *batch* and write what follows; return the verdicts, and what is to go out now."""
        writes, now = UnitOfWork(new_keys(batch)), self._clock.now()
        results, due = self.decide(batch, connection, writes, now)
        self.flush(connection, writes, now)
        return results, self.to_publish(due)

    def decide(
        self, batch: Sequence[WorkItem], connection: Connection, writes: UnitOfWork, now: datetime
    ) -> tuple[list[ItemResult], list[OutgoingEvent]]:
        """
        Decide about *batch*; what follows from it joins *writes*, which may hold more of this transaction already.

        Return the verdicts, and what goes out *now*.
        """
        moment = to_db_timestamp(now)
        touches, decide = self._module.keys, self._module.decide
        touched = [touches(item.event) for item in batch]
        keys = writes.missing_keys(touched)
        inbox_ids = [item.inbox_id for item in batch if item.inbox_id is not None]
        known, found = self._store.load_with_inbox(connection, inbox_ids, keys)
        writes.load(keys, found)

        world, states, heard, keys_of = writes.identity_map, writes.changed, writes.inbox_entries, self._keys_of
        due: list[OutgoingEvent] = []
        results = []
        for item, wanted in zip(batch, touched, strict=True):
            inbox_id = item.inbox_id
            if inbox_id is not None and inbox_id in known:
                results.append(self._replay(item, *known[inbox_id]))
                continue
            if item.defers_to_newer:
                results.append(ItemResult(error=DeferredToNewerVersion("a newer version of this event is to come")))
                continue
            told = None
            try:
                decision = decide([world[cls][key] for cls, key in wanted], item.event, now)
                changed = [(type(state), keys_of[type(state)](state), state) for state in decision.states]
                if item.respond is not None:
                    after = {(cls, key): state for cls, key, state in changed}
                    outcome = DecisionOutcome(tuple([after.get(key) or world[key[0]][key[1]] for key in wanted]), decision.emitted)
                    told = Reply(item.respond(outcome))
                if decision.events:
                    due += self._stage_events(item, decision, moment, wanted[0][1] if wanted else "", writes)
            except Exception as error:  # whatever a decision raises, it is this event's trouble and nobody else's
                results.append(ItemResult(error=error))
                continue
            for cls, key, state in changed:
                world[cls][key] = states[cls][key] = state
            if item.cause is not None:
                heard.append((item, None))
            elif inbox_id is not None and not (told is not None and isinstance(told.response, Rejection)):
                answer = None
                if item.fingerprint is not None and told is not None:
                    answer = _kept(told.response)
                heard.append((item, answer))
                known[inbox_id] = item.fingerprint, answer
            results.append(ItemResult(decision, told))
        return results, writes.without_cancelled(due)

    def flush(self, connection: Connection, writes: UnitOfWork, now: datetime) -> None:
        """
        Write *writes* down, but for what is over.

        Raises:
            Invalid: Something that has to travel breaks the schema of an older version.
        """
        moment, (first_id, end_id) = to_db_timestamp(now), time_ordered_id_range(now)
        heard = []
        for item, answer in writes.inbox_entries:
            if item.cause is None or not item.cause.is_delivered_locally:
                id = item.inbox_id or item.id
                untimed = int(item.fingerprint is not None or not first_id <= id < end_id)
                heard.append(InboxEntry(id, moment, untimed, item.fingerprint, answer))
        outbox_messages = [
            message
            for said in writes.outgoing
            if not said.is_delivered_locally
            for message in said.to_messages(self.contracts)
        ]
        self._store.save(
            connection, states=writes.changed, new_keys=writes.new_keys, inbox_entries=heard, cancelled_timers=writes.cancelled_timers, outgoing=outbox_messages
        )

    def to_publish(self, due: Sequence[OutgoingEvent]) -> list[OutboxMessage]:
        """Return the parcels of *due*, which go out over the bus: some may come back to this very process."""
        return [message for said in due for message in said.to_messages(self.contracts)]

    def _stage_events(self, item: WorkItem, decision: Decision, now: str, key: str, writes: UnitOfWork) -> list[OutgoingEvent]:
        """
        Put into *writes* what goes out and what is withdrawn; return what goes out now.

        Raises:
            Invalid: An event breaks its schema; then nothing was put there.
        """
        is_express = item.is_express if decision.express is None else decision.express
        producer, contracts = self._module.name, self.contracts
        everything: list[OutgoingEvent] = []
        names: list[str] = []
        withdrawn: list[str] = []
        is_later = False
        for ordinal, event in enumerate(decision.events):
            name, due_at = None, now
            if type(event) is Scheduled:
                name, due_at, event = event.timer or None, max(now, to_db_timestamp(event.due_at)), event.event
                is_later = is_later or due_at > now
                if name is not None:
                    names.append(name)
            elif type(event) is CancelTimer:
                withdrawn.append(event.timer)
                continue
            if hasattr(event, "__subject__"):
                value = contracts.to_json(event)
                everything.append(OutgoingEvent(event, value, item, producer, ordinal, is_express, key, now, due_at, name))
        if withdrawn:
            writes.cancel_timers(withdrawn)
        writes.outgoing += everything
        writes.timer_names.update(names)
        return [said for said in everything if said.due_at <= now] if is_later else everything

    @staticmethod
    def _replay(item: WorkItem, fingerprint: str | None, answer: str | None) -> ItemResult:
        """Return the verdict on what was heard before."""
        if item.fingerprint is not None and item.fingerprint != fingerprint:
            return ItemResult(error=IdempotencyKeyReused("This idempotency key was used for another request."))
        if answer is None:
            return ItemResult(reply=Reply(Response(200, None), is_replay=True))
        return ItemResult(reply=Reply(Response(**orjson.loads(answer)), is_replay=True))


def new_keys(batch: Sequence[WorkItem]) -> frozenset[str]:
    """Return the ids that were made up for those in *batch*."""
    return frozenset([item.new_key for item in batch if item.new_key is not None])


def _kept(answer: Response | Rejection) -> str:
    assert isinstance(answer, Response)
    return orjson.dumps({"status": answer.status, "body": answer.body, "headers": dict(answer.headers)}).decode()
