"""
One batch, thought through: claim, load, decide, write, all in somebody's transaction.

What was heard before drops out, the states that are needed are brought together, the module decides about one event
after the other, and everything that has changed is written with one statement per table. An event that cannot be
decided loses only itself.
"""

from __future__ import annotations

__all__ = ["Answering", "Batch", "Seat", "Superseded", "Verdict", "Writes"]

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from attrs import define, field
from sqlalchemy import Connection

from app.door import Context, KeyReused, Told
from app.outbox import Parcel
from app.rows import instant
from app.store import Kept, Store, timed_ids
from app.telemetry.trace import child
from bus.contracts import EXPRESS, Contracts
from bus.ids import caused_id
from bus.port import Clock, Delivery
from modules.module import Decision, Key, Later, Module, Outcome, Withdraw
from modules.route import Answer, Refusal

Answering = Callable[[Outcome], Answer | Refusal]


class Superseded(Exception):
    """It is too early to act on a lower version: the higher one has not come yet."""


@define(eq=False)
class Seat:
    """An event that waits to be decided, and whoever waits for that: a *future*, or a *delivery* of the bus."""

    event: Any
    id: str
    context: Context
    express: bool
    inbox_id: str | None
    fingerprint: str | None = None
    answer: Answering | None = None
    future: asyncio.Future[Told] | None = None
    delivery: Delivery | None = None
    said_at: str | None = None
    lower: tuple[Delivery, ...] = ()
    """Lower versions of the same event, which came while this one sat."""
    is_born: bool = False
    """True for what was said in the very transaction that hears it: nobody can have heard it before."""
    gives_way: bool = False
    """True for a lower version of what is to come in a higher one that we understand, too: that one is the better."""


@define(eq=False)
class Verdict:
    """What became of a seat. Without a decision and an error: it was heard before."""

    decision: Decision | None = None
    told: Told | None = None
    error: Exception | None = None


@define(eq=False)
class Writes:
    """What one module has decided within a transaction, and what is not written yet."""

    world: dict[type, dict[str, Any]] = field(factory=dict)
    """Every state that was asked for, as it is by now, by class and key; None for one that there is not."""
    states: dict[type, dict[str, Any]] = field(factory=dict)
    """Those that have changed."""
    new: dict[type, set[str]] = field(factory=dict)
    """Keys that are not in the database."""
    heard: list[Kept] = field(factory=list)
    withdrawn: list[str] = field(factory=list)
    said: list[Parcel] = field(factory=list)
    named: set[str] = field(factory=set)
    """Names under which something of it was said."""

    def unknown(self, touched: Iterable[Iterable[Key]]) -> dict[type, set[str]]:
        """Return which of *touched* nobody has asked for yet, by class."""
        keys: dict[type, set[str]] = {}
        for wanted in touched:
            for cls, key in wanted:
                if key not in self.world.setdefault(cls, {}):
                    keys.setdefault(cls, set()).add(key)
        return keys

    def learn(self, keys: Mapping[type, Collection[str]], found: Mapping[type, Mapping[str, Any]]) -> None:
        """Note what is *found* under *keys*."""
        for cls, wanted in keys.items():
            there = found[cls]
            self.world[cls].update((key, there.get(key)) for key in wanted)
            self.new.setdefault(cls, set()).update(key for key in wanted if key not in there)

    def change(self, cls: type, key: str, state: Any) -> None:
        """Put *state* in the place of what was under *key*."""
        self.world[cls][key] = state
        self.states.setdefault(cls, {})[key] = state

    def withdraw(self, names: Sequence[str]) -> None:
        """Take back what was said under *names*; what was said in this very transaction is never written."""
        self.withdrawn += names
        if not self.named.isdisjoint(names):
            self.said = [parcel for parcel in self.said if parcel.name not in names]

    def left(self, parcels: list[Parcel]) -> list[Parcel]:
        """Return those of *parcels* that were not taken back."""
        if self.named.isdisjoint(self.withdrawn):
            return parcels
        ids = {parcel.id for parcel in self.said}
        return [parcel for parcel in parcels if parcel.id in ids]


class Batch:
    """Think a batch of one module through."""

    def __init__(self, module: Module, store: Store, contracts: Contracts, clock: Clock) -> None:
        self._module = module
        self._store = store
        self._contracts = contracts
        self._clock = clock

    def __call__(self, batch: Sequence[Seat], connection: Connection) -> tuple[list[Verdict], list[Parcel]]:
        """Decide about *batch* and write what follows; return the verdicts, and what is to go out now."""
        writes = Writes()
        verdicts, due = self.think(batch, connection, writes, self._clock.now())
        self.write(connection, writes)
        return verdicts, due

    def think(
        self, batch: Sequence[Seat], connection: Connection, writes: Writes, now: datetime
    ) -> tuple[list[Verdict], list[Parcel]]:
        """
        Decide about *batch*; what follows from it joins *writes*, which may hold more of this transaction already.

        Return the verdicts, and what goes out *now*.
        """
        store, touches = self._store, self._module.touches
        said_at, (first_id, end_id) = instant(now), timed_ids(now)
        touched = [touches(seat.event) for seat in batch]
        keys = writes.unknown(touched)
        inbox_ids = [seat.inbox_id for seat in batch if seat.inbox_id is not None and not seat.is_born]
        known, found = store.recall(connection, inbox_ids, keys)
        writes.learn(keys, found)
        for kept in writes.heard:
            known[kept.id] = kept.fingerprint, kept.answer

        world, rows, decide = writes.world, store.rows, self._module.decide
        due: list[Parcel] = []
        verdicts = []
        for seat, wanted in zip(batch, touched, strict=True):
            if seat.inbox_id is not None and seat.inbox_id in known:
                verdicts.append(self._again(seat, *known[seat.inbox_id]))
                continue
            if seat.gives_way:
                verdicts.append(Verdict(error=Superseded("a newer version of this event is to come")))
                continue
            try:
                decision = decide([world[cls][key] for cls, key in wanted], seat.event, now)
                parcels, names, taken_back = self._said(seat, decision, said_at, wanted)
                changed = [(type(state), rows[type(state)].key_of(state), state) for state in decision.states]
                told = None
                if seat.answer is not None:
                    after = {(cls, key): state for cls, key, state in changed}
                    states = tuple([after.get(key) or world[key[0]][key[1]] for key in wanted])
                    told = Told(seat.answer(Outcome(states, decision.said)))
            except Exception as error:  # whatever a decision raises, it is this event's trouble and nobody else's
                verdicts.append(Verdict(error=error))
                continue
            for cls, key, state in changed:
                writes.change(cls, key, state)
            if taken_back:
                writes.withdraw(taken_back)
            writes.said += parcels
            writes.named.update(names)
            due += [parcel for parcel in parcels if parcel.due_at <= said_at]
            if seat.inbox_id is not None and not (told is not None and isinstance(told.answer, Refusal)):
                answer = None
                if seat.fingerprint is not None and told is not None:
                    answer = _kept(told.answer)
                untimed = int(seat.fingerprint is not None or not first_id <= seat.inbox_id < end_id)
                writes.heard.append(Kept(seat.inbox_id, said_at, untimed, seat.fingerprint, answer))
                known[seat.inbox_id] = seat.fingerprint, answer
            verdicts.append(Verdict(decision, told))
        return verdicts, writes.left(due)

    def write(self, connection: Connection, writes: Writes, sent: Collection[str] = ()) -> None:
        """Write *writes* down; of what was said, those with the ids *sent* have arrived already."""
        self._store.save(
            connection,
            states=writes.states,
            new=writes.new,
            heard=writes.heard,
            withdrawn=writes.withdrawn,
            said=[parcel for parcel in writes.said if parcel.id not in sent] if sent else writes.said,
            sent=[parcel for parcel in writes.said if parcel.id in sent] if sent else (),
        )

    def _said(
        self, seat: Seat, decision: Decision, now: str, wanted: Sequence[tuple[type, str]]
    ) -> tuple[list[Parcel], list[str], list[str]]:
        """Return what goes out, under which names, and which names are withdrawn."""
        express = seat.express if decision.express is None else decision.express
        key = wanted[0][1] if wanted else ""
        parcels: list[Parcel] = []
        names: list[str] = []
        withdrawn: list[str] = []
        for ordinal, said in enumerate(decision.events):
            name, due_at = None, now
            if isinstance(said, Withdraw):
                withdrawn.append(said.name)
                continue
            if isinstance(said, Later):
                name, due_at, said = said.name or None, max(now, instant(said.at)), said.event
                if name is not None:
                    names.append(name)
            if not hasattr(said, "__subject__"):
                continue
            # Two modules may answer one event: the speaker is part of the id, or the bus would take them for copies.
            id = caused_id(seat.id, f"{self._module.name}.{ordinal}")
            trace = child(seat.context.traceparent, id)
            for subject, body, mark, versions in self._contracts.say(said):
                parcels.append(
                    Parcel(
                        id if mark is None else caused_id(id, mark), id, subject + EXPRESS if express else subject,
                        key, body, name, seat.context.correlation_id, seat.id, trace, now, due_at, versions,
                    )
                )  # fmt: skip
        return parcels, names, withdrawn

    @staticmethod
    def _again(seat: Seat, fingerprint: str | None, answer: str | None) -> Verdict:
        """Return the verdict on what was heard before."""
        if seat.fingerprint is not None and seat.fingerprint != fingerprint:
            return Verdict(error=KeyReused("This idempotency key was used for another request."))
        if answer is None:
            return Verdict(told=Told(Answer(200, None), is_replay=True))
        return Verdict(told=Told(Answer(**orjson.loads(answer)), is_replay=True))


def _kept(answer: Answer | Refusal) -> str:
    assert isinstance(answer, Answer)
    return orjson.dumps({"status": answer.status, "body": answer.body, "headers": dict(answer.headers)}).decode()
