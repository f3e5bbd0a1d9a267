"""What has been decided within a transaction: what is to be written of it, what was said, and what of that has to travel."""

from __future__ import annotations

__all__ = ["UnitOfWork"]

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from attrs import define, field

from app.runtime.work import OutgoingEvent, WorkItem
from modules.module import Key


@define(eq=False)
class UnitOfWork:
    """What one module has decided within a transaction, and what is not written yet."""

    generated_keys: Set[str] = frozenset()
    """Keys that were made up for this transaction: there is no need to look for what is under them."""
    identity_map: dict[type, dict[str, Any]] = field(factory=lambda: defaultdict(dict))
    """Every state that was asked for, as it is by now, by class and key; None for one that there is not."""
    changed: dict[type, dict[str, Any]] = field(factory=lambda: defaultdict(dict))
    """Those that have changed."""
    new_keys: dict[type, set[str]] = field(factory=lambda: defaultdict(set))
    """Keys that are not in the database."""
    inbox_entries: list[tuple[WorkItem, str | None]] = field(factory=list)
    """Who was decided about, each with the answer that is kept for it."""
    cancelled_timers: list[str] = field(factory=list)
    outgoing: list[OutgoingEvent] = field(factory=list)
    timer_names: set[str] = field(factory=set)
    """Names under which something of it was said."""

    def missing_keys(self, touched: Iterable[Iterable[Key]]) -> dict[type, set[str]]:
        """Return which of *touched* nobody has asked for yet, by class, and have to be looked for."""
        world, fresh = self.identity_map, self.generated_keys
        keys: dict[type, set[str]] = defaultdict(set)
        for wanted in touched:
            for cls, key in wanted:
                if key not in world[cls]:
                    if key in fresh:
                        world[cls][key] = None
                        self.new_keys[cls].add(key)
                    else:
                        keys[cls].add(key)
        return keys

    def load(self, keys: Mapping[type, Set[str]], found: Mapping[type, Mapping[str, Any]]) -> None:
        """Note what is *found* under *keys*."""
        for cls, wanted in keys.items():
            there = found[cls]
            world = self.identity_map[cls]
            world.update(there)
            missing = wanted - there.keys()
            world.update(dict.fromkeys(missing))
            self.new_keys[cls] |= missing

    def cancel_timers(self, names: Sequence[str]) -> None:
        """Take back what was said under *names*; what was said in this very transaction is never written."""
        self.cancelled_timers += names
        if not self.timer_names.isdisjoint(names):
            self.outgoing = [said for said in self.outgoing if said.timer not in names]

    def without_cancelled(self, said: list[OutgoingEvent]) -> list[OutgoingEvent]:
        """Return what of *said* was not taken back."""
        if self.timer_names.isdisjoint(self.cancelled_timers):
            return said
        still = set(self.outgoing)
        return [each for each in said if each in still]
