"""
Report which consumers still use which version of an event, and whether an old version may be dropped.

The bus is the source, not the plan. A version is needed as long as a consumer subscribes to it and to no newer version of
the same event, or has unsettled messages. The counts are those of this process.
"""

from __future__ import annotations

__all__ = ["VersionUsage", "VersionUsageReport", "blockers", "dependents", "subjects_of"]

from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from app.telemetry.metrics import Metrics
from bus.consumers import ConsumerDirectory, RegisteredConsumer, subject_matches
from bus.contracts.registry import ContractRegistry
from bus.contracts.versions import subject_at, version_of
from bus.subjects import EXPRESS, without_lane
from modules.module import Module

Counts = Mapping[str, Mapping[str, int]]
"""The number of messages by consumer and outcome."""


@frozen
class VersionUsage:
    """
    One version of one event and its consumers.

    It is published if it is the newest, or since the release *since* beside the newest (dual publishing). One
    that is retired is not, unless a consumer depends on it (`app.messaging.versions.retirement`).
    """

    subject: str
    event: str
    version: int
    producer: str
    is_newest: bool
    is_published: bool
    is_retired: bool
    since: str | None
    consumers: tuple[RegisteredConsumer, ...]
    published: int
    handled: Counts
    reasons: tuple[str, ...]
    """Why the version may not be dropped; empty if it may."""

    @property
    def is_safe_to_drop(self) -> bool:
        """True if no consumer depends on this version."""
        return not self.reasons


def blockers(subject: str, newer: Sequence[str], consumers: Iterable[RegisteredConsumer]) -> tuple[str, ...]:
    """
    Return the reasons, one clause each, why *subject* may not be dropped; *newer* are the newer versions of its event.

    Consumers depend on it, or have messages to settle.
    """
    if not newer:
        return ("it is the newest version",)
    found = []
    for consumer in consumers:
        found += dependents(subject, newer, [consumer])
        if consumer.pending and _lanes(consumer, subject):
            found.append(f"{consumer.consumer} has {consumer.pending} unsettled messages")
    return tuple(found)


def dependents(subject: str, newer: Sequence[str], consumers: Iterable[RegisteredConsumer]) -> list[str]:
    """
    Return one clause for each of *consumers* that consumes *subject* and none of the *newer* versions of its event.

    A consumer that subscribes to a newer version by its full subject is taken to understand it. A wildcard subscription
    proves nothing, unless the consumer names the newer version as understood.
    """
    found = []
    for consumer in consumers:
        lanes, named = _lanes(consumer, subject), set(consumer.subjects)
        if not all(any(newer_subject + _lane(lane) in named | consumer.understood for newer_subject in newer) for lane in lanes):
            how = "consumes it" if lanes & named else "consumes it by a wildcard"
            found.append(f"{consumer.consumer} {how} and names no newer version")
    return found


def _lanes(consumer: RegisteredConsumer, subject: str) -> set[str]:
    """Return *subject* in those lanes that *consumer* subscribes to."""
    return {lane for lane in (subject, subject + EXPRESS) if _covers(consumer, lane)}


def _covers(consumer: RegisteredConsumer, subject: str) -> bool:
    return any(subject_matches(pattern, subject) for pattern in consumer.subjects)


def _lane(subject: str) -> str:
    return EXPRESS if subject.endswith(EXPRESS) else ""


def subjects_of(modules: Sequence[Module], contracts: ContractRegistry) -> list[str]:
    """Return the subjects, without lanes, that *modules* publish or consume, the versions of each event in order."""
    names = {module.name for module in modules}
    consumed = {subject for module in modules for subject in contracts.subjects_for(module.consumes)}
    found = (c.subject for c in contracts if c.subject.partition(".")[0] in names or c.subject in consumed)
    return sorted(found, key=version_of)


class VersionUsageReport:
    """Reports the usage of every event version that the modules of this process publish or consume."""

    def __init__(
        self, modules: Sequence[Module], contracts: ContractRegistry, metrics: Metrics, consumers: ConsumerDirectory
    ) -> None:
        self._contracts = contracts
        self._metrics = metrics
        self._consumers = consumers
        self._subjects = subjects_of(modules, contracts)
        self.modules = frozenset(module.name for module in modules)

    async def usages(self) -> list[VersionUsage]:
        """Return the usage of every event version that the modules of this process publish or consume."""
        try:
            consumers: Sequence[RegisteredConsumer] | None = await self._consumers.consumers()
        except Exception:  # whatever the cause: while the consumers are unknown, no version may be dropped
            consumers = None
        published = self._published()
        handled = self._handled()
        return [
            self._usage(subject, consumers, published.get(subject, 0), handled.get(subject, {}))
            for subject in self._subjects
        ]

    def _usage(
        self, subject: str, consumers: Sequence[RegisteredConsumer] | None, published: int, handled: Counts
    ) -> VersionUsage:
        event, version = version_of(subject)
        versions = sorted(v for e, v in (version_of(c.subject) for c in self._contracts) if e == event)
        dual_publish = next(
            (m for m in self._contracts.dual_publishes if (m.event, m.from_version) == (event, version)), None
        )
        newer = [subject_at(event, other) for other in versions if other > version]
        reasons = blockers(subject, newer, consumers or ())
        if consumers is None:
            reasons = (*reasons, "the bus does not answer, so its consumers are unknown")
        lanes = (subject, subject + EXPRESS)
        return VersionUsage(
            subject=subject,
            event=event,
            version=version,
            producer=subject.partition(".")[0],
            is_newest=not newer,
            is_published=self._contracts.is_published(subject),
            is_retired=subject in self._contracts.retired,
            since=None if dual_publish is None else dual_publish.since,
            consumers=tuple(each for each in consumers or () if any(_covers(each, lane) for lane in lanes)),
            published=published,
            handled=handled,
            reasons=reasons,
        )

    def _published(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for (subject,), counter in self._metrics.messages_published.items():
            found[without_lane(subject)] = found.get(without_lane(subject), 0) + int(counter.value)
        return found

    def _handled(self) -> dict[str, dict[str, dict[str, int]]]:
        found: dict[str, dict[str, dict[str, int]]] = {}
        for (consumer, subject, outcome), counter in self._metrics.messages_handled.items():
            outcomes = found.setdefault(without_lane(subject), {}).setdefault(consumer, {})
            outcomes[outcome] = outcomes.get(outcome, 0) + int(counter.value)
        return found
