"""What has been decided within a transaction: what is to be written of it, what was said, and what of that has to travel."""

from __future__ import annotations

__all__ = ["Said", "Writes"]

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from attrs import define, field

from app.runtime.work import Seat
from app.storage.outbox import Parcel
from app.telemetry.trace import child
from bus.contracts.registry import Contracts, Value
from bus.ids import caused_id
from bus.subjects import EXPRESS
from modules.module import Key


@define(eq=False)
class Said:
    """
    An *event* that was said, and fits its schema: *value* is what goes out.

    Most of what is said within a house need not travel, for all whom it concerns decide about it at once; so whatever
    serves the journey only is made when there is one: the id, the older versions, the parcels.
    """

    event: Any
    value: Value
    cause: Seat
    speaker: str
    ordinal: int
    """Its place among all that followed from its *cause*."""
    is_express: bool
    key: str
    said_at: str
    due_at: str
    name: str | None = None
    travels: Set[str] | None = None
    """Under which subjects it has to; None means under all."""
    _id: str | None = None
    _packed: list[tuple[Parcel, Any]] | None = None

    @property
    def id(self) -> str:
        """The event's id. Two modules may answer one event: without the speaker in it the bus would take them for copies."""
        if self._id is None:
            self._id = caused_id(self.cause.id, f"{self.speaker}.{self.ordinal}")
        return self._id

    @property
    def traceparent(self) -> str:
        """The trace of its cause, continued."""
        return child(self.cause.context.traceparent, self.id)

    @property
    def is_over(self) -> bool:
        """True for what need not travel at all: it never comes again, so neither outbox nor inbox need to know of it."""
        return self.travels is not None and not self.travels

    def packed(self, contracts: Contracts) -> list[tuple[Parcel, Any]]:
        """
        Return the parcels that it travels in, each with the event as it is in that version.

        Raises:
            Invalid: It breaks the schema of an older version.
        """
        if self._packed is None:
            id, trace, context = self.id, self.traceparent, self.cause.story
            lane = EXPRESS if self.is_express else ""
            self._packed = [
                (
                    Parcel(
                        id if mark is None else caused_id(id, mark), id, subject + lane, self.key, body, self.name,
                        context.correlation_id, self.cause.id, trace, self.said_at, self.due_at, versions,
                    ),
                    event,
                )
                for subject, body, event, mark, versions in contracts.say(self.event, self.value)
                if self.travels is None or subject + lane in self.travels
            ]  # fmt: skip
        return self._packed


@define(eq=False)
class Writes:
    """What one module has decided within a transaction, and what is not written yet."""

    fresh: Set[str] = frozenset()
    """Keys that were made up for this transaction: there is no need to look for what is under them."""
    world: dict[type, dict[str, Any]] = field(factory=lambda: defaultdict(dict))
    """Every state that was asked for, as it is by now, by class and key; None for one that there is not."""
    states: dict[type, dict[str, Any]] = field(factory=lambda: defaultdict(dict))
    """Those that have changed."""
    new: dict[type, set[str]] = field(factory=lambda: defaultdict(set))
    """Keys that are not in the database."""
    heard: list[tuple[Seat, str | None]] = field(factory=list)
    """Who was decided about, each with the answer that is kept for it."""
    withdrawn: list[str] = field(factory=list)
    said: list[Said] = field(factory=list)
    named: set[str] = field(factory=set)
    """Names under which something of it was said."""

    def unknown(self, touched: Iterable[Iterable[Key]]) -> dict[type, set[str]]:
        """Return which of *touched* nobody has asked for yet, by class, and have to be looked for."""
        world, fresh = self.world, self.fresh
        keys: dict[type, set[str]] = defaultdict(set)
        for wanted in touched:
            for cls, key in wanted:
                if key not in world[cls]:
                    if key in fresh:
                        world[cls][key] = None
                        self.new[cls].add(key)
                    else:
                        keys[cls].add(key)
        return keys

    def learn(self, keys: Mapping[type, Set[str]], found: Mapping[type, Mapping[str, Any]]) -> None:
        """Note what is *found* under *keys*."""
        for cls, wanted in keys.items():
            there = found[cls]
            world = self.world[cls]
            world.update(there)
            missing = wanted - there.keys()
            world.update(dict.fromkeys(missing))
            self.new[cls] |= missing

    def withdraw(self, names: Sequence[str]) -> None:
        """Take back what was said under *names*; what was said in this very transaction is never written."""
        self.withdrawn += names
        if not self.named.isdisjoint(names):
            self.said = [said for said in self.said if said.name not in names]

    def left(self, said: list[Said]) -> list[Said]:
        """Return what of *said* was not taken back."""
        if self.named.isdisjoint(self.withdrawn):
            return said
        still = set(self.said)
        return [each for each in said if each in still]
