"""
Who still needs which version of an event, and so: when may an old one go?

The answer comes from the bus, not from our plans: whoever listens to an older version and to no newer one of the same
event would be left alone, and so would whoever has messages waiting. Numbers are those of this process.
"""

from __future__ import annotations

__all__ = ["VersionUsage", "VersionUsageReport", "blockers", "subjects_of"]

from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from app.telemetry.metrics import Metrics
from bus.consumers import ConsumerDirectory, RegisteredConsumer, subject_matches
from bus.contracts.registry import ContractRegistry
from bus.contracts.versions import subject_at, version_of
from bus.subjects import EXPRESS, without_lane
from modules.module import Module

Counts = Mapping[str, Mapping[str, int]]
"""How many messages ended in which way, by consumer and outcome."""


@frozen
class VersionUsage:
    """One version of one event. It is *said* while it is the newest, or while a migration since *since* says it beside."""

    subject: str
    event: str
    version: int
    producer: str
    is_newest: bool
    is_said: bool
    since: str | None
    listeners: tuple[RegisteredConsumer, ...]
    published: int
    handled: Counts
    reasons: tuple[str, ...]
    """Why it may not be dropped; without any, it may."""

    @property
    def is_safe_to_drop(self) -> bool:
        """True when nobody would notice."""
        return not self.reasons


def blockers(subject: str, newer: Sequence[str], listeners: Iterable[RegisteredConsumer]) -> tuple[str, ...]:
    """
    Say why *subject* may not be dropped as things stand, a sentence each; *newer* are the same event's newer versions.

    Whoever names a newer version in full is taken to understand it; a wildcard proves nothing.
    """
    if not newer:
        return ("it is the newest version",)
    found = []
    for listener in listeners:
        heard = {lane for lane in (subject, subject + EXPRESS) if _covers(listener, lane)}
        if not heard:
            continue
        understood = set(listener.subjects)
        if not all(any(plain_newer + _lane(lane) in understood for plain_newer in newer) for lane in heard):
            how = "hears it" if heard & understood else "hears it by a wildcard"
            found.append(f"{listener.consumer} {how}, and names no newer version")
        if listener.pending:
            found.append(f"{listener.consumer} has {listener.pending} messages to settle")
    return tuple(found)


def _covers(listener: RegisteredConsumer, subject: str) -> bool:
    return any(subject_matches(pattern, subject) for pattern in listener.subjects)


def _lane(subject: str) -> str:
    return EXPRESS if subject.endswith(EXPRESS) else ""


def subjects_of(modules: Sequence[Module], contracts: ContractRegistry) -> list[str]:
    """Return what *modules* say or hear, lanes aside, each event's versions in order."""
    named = {module.name for module in modules}
    heard = {subject for module in modules for subject in contracts.subjects_for(module.consumes)}
    found = (c.subject for c in contracts if c.subject.partition(".")[0] in named or c.subject in heard)
    return sorted(found, key=version_of)


class VersionUsageReport:
    """What is promised, who says it, who hears it, and what may go."""

    def __init__(self, modules: Sequence[Module], contracts: ContractRegistry, metrics: Metrics, listeners: ConsumerDirectory) -> None:
        self._contracts = contracts
        self._metrics = metrics
        self._listeners = listeners
        self._subjects = subjects_of(modules, contracts)
        self.modules = frozenset(module.name for module in modules)

    async def usages(self) -> list[VersionUsage]:
        """Return how every version of every event is used that this process's modules say or hear."""
        try:
            listeners: Sequence[RegisteredConsumer] | None = await self._listeners.consumers()
        except Exception:  # whatever it is: nobody knows who listens, and then nothing may be dropped
            listeners = None
        published = self._published()
        handled = self._handled()
        return [
            self._usage(subject, listeners, published.get(subject, 0), handled.get(subject, {}))
            for subject in self._subjects
        ]

    def _usage(self, subject: str, listeners: Sequence[RegisteredConsumer] | None, published: int, handled: Counts) -> VersionUsage:
        event, version = version_of(subject)
        versions = sorted(v for e, v in (version_of(c.subject) for c in self._contracts) if e == event)
        migration = next((m for m in self._contracts.dual_publishes if (m.event, m.from_version) == (event, version)), None)
        newer = [subject_at(event, other) for other in versions if other > version]
        reasons = blockers(subject, newer, listeners or ())
        if listeners is None:
            reasons = (*reasons, "the bus does not answer: nobody knows who listens")
        lanes = (subject, subject + EXPRESS)
        return VersionUsage(
            subject=subject,
            event=event,
            version=version,
            producer=subject.partition(".")[0],
            is_newest=not newer,
            is_said=not newer or migration is not None,
            since=None if migration is None else migration.since,
            listeners=tuple(each for each in listeners or () if any(_covers(each, lane) for lane in lanes)),
            published=published,
            handled=handled,
            reasons=reasons,
        )

    def _published(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for (subject,), tally in self._metrics.messages_published.items():
            found[without_lane(subject)] = found.get(without_lane(subject), 0) + int(tally.value)
        return found

    def _handled(self) -> dict[str, dict[str, dict[str, int]]]:
        found: dict[str, dict[str, dict[str, int]]] = {}
        for (consumer, subject, outcome), tally in self._metrics.messages_handled.items():
            outcomes = found.setdefault(without_lane(subject), {}).setdefault(consumer, {})
            outcomes[outcome] = outcomes.get(outcome, 0) + int(tally.value)
        return found
