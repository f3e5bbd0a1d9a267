"""What a replay has found: events that differ, states that differ, and what could not be decided again."""

from __future__ import annotations

__all__ = ["Difference", "Report", "StateDifference"]

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field, frozen


@frozen
class Difference:
    """One event that follows differently today, or a decision that fails or has another effect today."""

    module: str
    number: int
    """The number of the transaction."""
    at: str
    key: str
    """The order or the product."""
    cause: str
    """The subject or the class of what was decided about."""
    ordinal: int
    """The position of the event among those of the decision; 0 if the whole decision differs."""
    was: str | None
    """The subject that the history has; None for an additional event."""
    now: str | None
    """The subject today; None for a missing event."""
    detail: str
    is_consequence: bool
    """True if something about the same order or product, or its cause, has differed before."""


@frozen
class StateDifference:
    """One state whose end differs."""

    module: str
    kind: str
    """The name of its class in small letters: ``order``."""
    key: str
    members: Mapping[str, tuple[Any, Any]]
    """By member: what the live database has, and what follows from the history. Empty if one of them has no such state."""
    detail: str

    @property
    def is_end(self) -> bool:
        """True if the state ends with another status, or for another reason, or does not exist."""
        return not self.members or not {"status", "reason"}.isdisjoint(self.members)

    def text(self) -> str:
        """Return it as one line."""
        return f"{self.kind} {self.key}: {self.detail}"


@define
class Report:
    """What was compared, and what was found; at most *limit* differences of each kind are kept, all are counted."""

    limit: int = 20
    transactions: int = 0
    decisions: int = 0
    first: tuple[int, str] | None = None
    """Number and time of the first transaction."""
    last: tuple[int, str] | None = None
    differences: list[Difference] = field(factory=list)
    """Those that are no consequence of another about the same order or product."""
    consequences: list[Difference] = field(factory=list)
    root_count: int = 0
    groups: Counter[tuple[str, str, str, str]] = field(factory=Counter)
    """By module, cause, subject in the history and subject today: how many differ."""
    affected: set[str] = field(factory=set)
    """The orders and products about which something differs."""
    shifted: Counter[tuple[str, str, float]] = field(factory=Counter)
    """By module and subject: how many timers are due by so many seconds later today."""
    stopped: dict[str, str] = field(factory=dict)
    """By module: why its history could not be decided again to the end."""
    before: dict[tuple[str, str], int] = field(factory=lambda: defaultdict(int))
    """By module and kind: how many states begin before the history, so that nothing is known about them."""
    before_examples: dict[tuple[str, str], Sequence[str]] = field(factory=dict)
    deleted: Counter[tuple[str, str]] = field(factory=Counter)
    """By module and kind: how many finished states are older than any that the database still has."""
    states: Counter[tuple[str, str]] = field(factory=Counter)
    """By module and kind: how many states were compared."""
    ends: list[StateDifference] = field(factory=list)
    """The states that end differently."""
    other_states: list[StateDifference] = field(factory=list)
    """Those that differ in other members only."""
    state_count: int = 0
    end_count: int = 0

    @property
    def count(self) -> int:
        """How many events and decisions differ."""
        return sum(self.groups.values())

    @property
    def is_equal(self) -> bool:
        """True if everything was decided again, and nothing differs."""
        return not (self.groups or self.shifted or self.stopped or self.state_count)

    def add(self, difference: Difference) -> None:
        """Count *difference*."""
        self.affected.add(difference.key)
        self.groups[difference.module, difference.cause, difference.was or "nothing", difference.now or "nothing"] += 1
        kept = self.consequences if difference.is_consequence else self.differences
        self.root_count += not difference.is_consequence
        if len(kept) < self.limit:
            kept.append(difference)

    def add_state(self, difference: StateDifference) -> None:
        """Count *difference*."""
        self.state_count += 1
        self.end_count += difference.is_end
        kept = self.ends if difference.is_end else self.other_states
        if len(kept) < self.limit:
            kept.append(difference)

    def stop(self, module: str, number: int, why: str) -> None:
        """Note that *module* cannot be decided again from transaction *number* on."""
        self.stopped.setdefault(module, f"transaction {number}: {why}")
