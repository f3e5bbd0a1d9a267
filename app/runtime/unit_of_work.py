"""The unit of work: what one module has loaded, changed and emitted within a transaction that is not written yet."""

from __future__ import annotations

__all__ = ["UnitOfWork"]

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from attrs import define, field

from app.runtime.work import OutgoingEvent, WorkItem
from app.storage.tables import AuditEntry
from modules.module import Key


@define(eq=False)
class UnitOfWork:
    """One module's part of a transaction."""

    generated_keys: Set[str] = frozenset()
    """Keys that were generated for this transaction: no select is needed to know that no state exists under them."""
    identity_map: dict[type, dict[str, Any]] = field(factory=lambda: defaultdict(dict))
    """Every state that was loaded, as it is now, by class and key; None where no state exists."""
    changed: dict[type, dict[str, Any]] = field(factory=lambda: defaultdict(dict))
    """The states that have changed."""
    new_keys: dict[type, set[str]] = field(factory=lambda: defaultdict(set))
    """Keys under which the database has no row."""
    inbox_entries: list[tuple[WorkItem, str | None]] = field(factory=list)
    """The items that were decided, each with the reply that is stored for its idempotency key."""
    audit: list[AuditEntry] = field(factory=list)
    """What a person or a key has changed."""
    cancelled_timers: list[str] = field(factory=list)
    outgoing: list[OutgoingEvent] = field(factory=list)
    timer_names: set[str] = field(factory=set)
    """Names of the timers that were set within this transaction."""

    def missing_keys(self, wanted: Iterable[Iterable[Key]]) -> dict[type, set[str]]:
        """Return which of the *wanted* keys have to be loaded from the database, by class."""
        identity_map, generated = self.identity_map, self.generated_keys
        missing: dict[type, set[str]] = defaultdict(set)
        for keys in wanted:
            for cls, key in keys:
                if key not in identity_map[cls]:
                    if key in generated:
                        identity_map[cls][key] = None
                        self.new_keys[cls].add(key)
                    else:
                        missing[cls].add(key)
        return missing

    def load(self, keys: Mapping[type, Set[str]], found: Mapping[type, Mapping[str, Any]]) -> None:
        """Put the states *found* under *keys* into the identity map; the other keys have no state."""
        for cls, wanted in keys.items():
            existing = found[cls]
            states = self.identity_map[cls]
            states.update(existing)
            missing = wanted - existing.keys()
            states.update(dict.fromkeys(missing))
            self.new_keys[cls] |= missing

    def cancel_timers(self, names: Sequence[str]) -> None:
        """Cancel the timers *names*; one that was set within this transaction is never written."""
        self.cancelled_timers += names
        if not self.timer_names.isdisjoint(names):
            self.outgoing = [event for event in self.outgoing if event.timer not in names]

    def without_cancelled(self, events: list[OutgoingEvent]) -> list[OutgoingEvent]:
        """Return *events* without those whose timer was cancelled within this transaction."""
        if self.timer_names.isdisjoint(self.cancelled_timers):
            return events
        remaining = set(self.outgoing)
        return [event for event in events if event in remaining]
