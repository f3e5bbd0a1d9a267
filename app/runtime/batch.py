"""
One batch, thought through: claim, load, decide, write, all in somebody's transaction.

What was heard before drops out, the states that are needed are brought together, the module decides about one event
after the other, and everything that has changed is written with one statement per table. An event that cannot be
decided loses only itself.
"""

from __future__ import annotations

__all__ = ["Batch", "fresh_in"]

from collections.abc import Sequence
from datetime import datetime

import orjson
from sqlalchemy import Connection

from app.runtime.service import KeyReused, Told
from app.runtime.unit_of_work import Said, Writes
from app.runtime.work import Seat, Superseded, Verdict
from app.storage.module_store import Kept, Store, timed_ids
from app.storage.outbox import Parcel
from app.storage.state_rows import instant
from bus.contracts.registry import Contracts
from bus.port import Clock
from modules.module import Decision, Later, Module, Outcome, Withdraw
from modules.route import Answer, Refusal


class Batch:
    """Think a batch of one module through."""

    def __init__(self, module: Module, store: Store, contracts: Contracts, clock: Clock) -> None:
        self._module = module
        self._store = store
        self.contracts = contracts
        self._clock = clock
        self._keys_of = {cls: rows.key_of for cls, rows in store.rows.items()}

    def __call__(self, batch: Sequence[Seat], connection: Connection) -> tuple[list[Verdict], list[Parcel]]:
        """Decide about *batch* and write what follows; return the verdicts, and what is to go out now."""
        writes, now = Writes(fresh_in(batch)), self._clock.now()
        verdicts, due = self.think(batch, connection, writes, now)
        self.write(connection, writes, now)
        return verdicts, self.leaving(due)

    def think(
        self, batch: Sequence[Seat], connection: Connection, writes: Writes, now: datetime
    ) -> tuple[list[Verdict], list[Said]]:
        """
        Decide about *batch*; what follows from it joins *writes*, which may hold more of this transaction already.

        Return the verdicts, and what goes out *now*.
        """
        moment = instant(now)
        touches, decide = self._module.touches, self._module.decide
        touched = [touches(seat.event) for seat in batch]
        keys = writes.unknown(touched)
        inbox_ids = [seat.inbox_id for seat in batch if seat.inbox_id is not None]
        known, found = self._store.recall(connection, inbox_ids, keys)
        writes.learn(keys, found)

        world, states, heard, keys_of = writes.world, writes.states, writes.heard, self._keys_of
        due: list[Said] = []
        verdicts = []
        for seat, wanted in zip(batch, touched, strict=True):
            inbox_id = seat.inbox_id
            if inbox_id is not None and inbox_id in known:
                verdicts.append(self._again(seat, *known[inbox_id]))
                continue
            if seat.gives_way:
                verdicts.append(Verdict(error=Superseded("a newer version of this event is to come")))
                continue
            told = None
            try:
                decision = decide([world[cls][key] for cls, key in wanted], seat.event, now)
                changed = [(type(state), keys_of[type(state)](state), state) for state in decision.states]
                if seat.answer is not None:
                    after = {(cls, key): state for cls, key, state in changed}
                    outcome = Outcome(tuple([after.get(key) or world[key[0]][key[1]] for key in wanted]), decision.said)
                    told = Told(seat.answer(outcome))
                if decision.events:
                    due += self._say(seat, decision, moment, wanted[0][1] if wanted else "", writes)
            except Exception as error:  # whatever a decision raises, it is this event's trouble and nobody else's
                verdicts.append(Verdict(error=error))
                continue
            for cls, key, state in changed:
                world[cls][key] = states[cls][key] = state
            if seat.said is not None:
                heard.append((seat, None))
            elif inbox_id is not None and not (told is not None and isinstance(told.answer, Refusal)):
                answer = None
                if seat.fingerprint is not None and told is not None:
                    answer = _kept(told.answer)
                heard.append((seat, answer))
                known[inbox_id] = seat.fingerprint, answer
            verdicts.append(Verdict(decision, told))
        return verdicts, writes.left(due)

    def write(self, connection: Connection, writes: Writes, now: datetime) -> None:
        """
        Write *writes* down, but for what is over.

        Raises:
            Invalid: Something that has to travel breaks the schema of an older version.
        """
        moment, (first_id, end_id) = instant(now), timed_ids(now)
        heard = []
        for seat, answer in writes.heard:
            if seat.said is None or not seat.said.is_over:
                id = seat.inbox_id or seat.id
                untimed = int(seat.fingerprint is not None or not first_id <= id < end_id)
                heard.append(Kept(id, moment, untimed, seat.fingerprint, answer))
        parcels = [parcel for said in writes.said if not said.is_over for parcel, _ in said.packed(self.contracts)]
        self._store.save(
            connection, states=writes.states, new=writes.new, heard=heard, withdrawn=writes.withdrawn, said=parcels
        )

    def leaving(self, due: Sequence[Said]) -> list[Parcel]:
        """Return the parcels of *due*, which go out over the bus: some may come back to this very process."""
        parcels = []
        for said in due:
            for parcel, event in said.packed(self.contracts):
                self.contracts.remember(event, parcel.body)
                parcels.append(parcel)
        return parcels

    def _say(self, seat: Seat, decision: Decision, now: str, key: str, writes: Writes) -> list[Said]:
        """
        Put into *writes* what goes out and what is withdrawn; return what goes out now.

        Raises:
            Invalid: An event breaks its schema; then nothing was put there.
        """
        is_express = seat.express if decision.express is None else decision.express
        speaker, contracts = self._module.name, self.contracts
        everything: list[Said] = []
        names: list[str] = []
        withdrawn: list[str] = []
        is_later = False
        for ordinal, event in enumerate(decision.events):
            name, due_at = None, now
            if type(event) is Later:
                name, due_at, event = event.name or None, max(now, instant(event.at)), event.event
                is_later = is_later or due_at > now
                if name is not None:
                    names.append(name)
            elif type(event) is Withdraw:
                withdrawn.append(event.name)
                continue
            if hasattr(event, "__subject__"):
                value = contracts.value(event)
                everything.append(Said(event, value, seat, speaker, ordinal, is_express, key, now, due_at, name))
        if withdrawn:
            writes.withdraw(withdrawn)
        writes.said += everything
        writes.named.update(names)
        return [said for said in everything if said.due_at <= now] if is_later else everything

    @staticmethod
    def _again(seat: Seat, fingerprint: str | None, answer: str | None) -> Verdict:
        """Return the verdict on what was heard before."""
        if seat.fingerprint is not None and seat.fingerprint != fingerprint:
            return Verdict(error=KeyReused("This idempotency key was used for another request."))
        if answer is None:
            return Verdict(told=Told(Answer(200, None), is_replay=True))
        return Verdict(told=Told(Answer(**orjson.loads(answer)), is_replay=True))


def fresh_in(batch: Sequence[Seat]) -> frozenset[str]:
    """Return the ids that were made up for those in *batch*."""
    return frozenset([seat.fresh for seat in batch if seat.fresh is not None])


def _kept(answer: Answer | Refusal) -> str:
    assert isinstance(answer, Answer)
    return orjson.dumps({"status": answer.status, "body": answer.body, "headers": dict(answer.headers)}).decode()
