"""What has been decided within a transaction: what is to be written of it, what goes out, and what is over already."""

from __future__ import annotations

__all__ = ["Over", "Said", "Writes"]

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from attrs import define, field

from app.outbox import Parcel
from app.store import Kept
from modules.module import Key


@define(eq=False)
class Said:
    """An *event* that is to go out now, by the module *speaker*, and the *parcel* that it goes in."""

    speaker: str
    parcel: Parcel
    event: Any
    is_settled: bool = True
    """False once it has to take the long way; see `app.cascade`."""


class Over:
    """
    What was *said* and decided about within one transaction, by all whom it concerns.

    It goes nowhere and never comes again, so neither outbox nor inbox need to know of it.
    """

    def __init__(self, said: Sequence[Said]) -> None:
        self.parcels = {each.parcel.id for each in said if each.is_settled}
        # Of an event that is said in two versions one may still be under way, and whoever heard the other must know it.
        under_way = {each.parcel.event_id for each in said if not each.is_settled}
        self.events = {each.parcel.event_id for each in said} - under_way


@define(eq=False)
class Writes:
    """What one module has decided within a transaction, and what is not written yet."""

    world: dict[type, dict[str, Any]] = field(factory=lambda: defaultdict(dict))
    """Every state that was asked for, as it is by now, by class and key; None for one that there is not."""
    states: dict[type, dict[str, Any]] = field(factory=lambda: defaultdict(dict))
    """Those that have changed."""
    new: dict[type, set[str]] = field(factory=lambda: defaultdict(set))
    """Keys that are not in the database."""
    heard: list[Kept] = field(factory=list)
    withdrawn: list[str] = field(factory=list)
    said: list[Parcel] = field(factory=list)
    named: set[str] = field(factory=set)
    """Names under which something of it was said."""

    def unknown(self, touched: Iterable[Iterable[Key]]) -> dict[type, set[str]]:
        """Return which of *touched* nobody has asked for yet, by class."""
        world = self.world
        keys: dict[type, set[str]] = defaultdict(set)
        for wanted in touched:
            for cls, key in wanted:
                if key not in world[cls]:
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
            self.said = [parcel for parcel in self.said if parcel.name not in names]

    def left(self, said: list[Said]) -> list[Said]:
        """Return what of *said* was not taken back."""
        if self.named.isdisjoint(self.withdrawn):
            return said
        ids = {parcel.id for parcel in self.said}
        return [each for each in said if each.parcel.id in ids]
