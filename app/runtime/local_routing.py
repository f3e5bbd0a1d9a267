"""
Local routing: which events can be delivered within the transaction that emits them.

Local delivery needs modules that share a process and a database. With NATS, or with a database for each module, the
table has no subscribers, and every event goes through the outbox to the bus.
"""

from __future__ import annotations

__all__ = ["LocalRoute", "LocalRoutes", "direct_takers"]

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from attrs import frozen

from app.runtime.work import TakeEvent
from bus.contracts.contract import Contract
from bus.contracts.event_reader import EventReader
from bus.contracts.registry import ContractRegistry
from bus.subjects import EXPRESS, Event, subject_of
from modules.module import Module

Convert = Callable[[Event], Event]


@frozen
class LocalRoute:
    """Where an event of one class goes, in one lane."""

    subjects: frozenset[str]
    """Every subject under which it is published: one for each version."""
    remote_subjects: frozenset[str]
    """Those of them that a consumer outside the modules subscribes to: the bus has to carry them."""
    subscribers: tuple[tuple[str, str, Convert], ...]
    """Module, subject, and the conversion of the event into the version that the module reads."""
    superseded: tuple[tuple[str, str], ...]
    """Module and subject of each version that the module skips, because it reads a newer one."""


class LocalRoutes:
    """The routing table: event class and lane → `LocalRoute`. It is false when it has no subscribers."""

    def __init__(
        self, readers: Mapping[str, EventReader], remote_subjects: Collection[str], contracts: ContractRegistry
    ) -> None:
        """
        Build the table for the modules that *readers* names.

        *remote_subjects*, without their lane, are also consumed outside these modules: by a worker, for example.
        """
        self._readers = dict(readers)
        self._remote = frozenset(each for subject in remote_subjects for each in (subject, subject + EXPRESS))
        self._contracts = contracts
        self._routes: dict[tuple[type, bool], LocalRoute] = {}

    def __bool__(self) -> bool:
        return bool(self._readers)

    def route(self, cls: type, is_express: bool) -> LocalRoute:
        """Return the route of the event class *cls*."""
        key = cls, is_express
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = self._build_route(*key)
        return route

    def _build_route(self, cls: type, is_express: bool) -> LocalRoute:
        contract = self._contracts[subject_of(cls)]
        lane = EXPRESS if is_express else ""
        versions = [(subject, subject + lane, steps) for subject, steps in _versions(contract)]
        subscribers, superseded = [], []
        for name, reader in self._readers.items():
            for subject, lane_subject, steps in versions:
                if lane_subject in self._remote or subject not in reader.subjects:
                    continue
                if contract.versions is not None and reader.has_newer(lane_subject, contract.versions):
                    superseded.append((name, lane_subject))
                else:
                    subscribers.append((name, lane_subject, _converter(reader, lane_subject, steps)))
        subjects = frozenset(lane_subject for _, lane_subject, _ in versions)
        return LocalRoute(subjects, subjects & self._remote, tuple(subscribers), tuple(superseded))


def direct_takers(modules: Iterable[Module], takers: Mapping[str, TakeEvent]) -> dict[type, TakeEvent]:
    """
    Return which of *takers*, by the consumer name of their worker, takes the events of a class in place of the bus.

    For a bus in memory only: there no other process consumes the events. What two consumers read stays on the bus.
    """
    consumed = [(name, cls) for module in modules for name, classes in module.workers.items() for cls in classes]
    consumers = Counter(cls for _, cls in consumed) + Counter(cls for module in modules for cls in module.consumes)
    return {cls: takers[name] for name, cls in consumed if consumers[cls] == 1}


def _versions(contract: Contract) -> Iterator[tuple[str, tuple[Convert, ...]]]:
    """Yield the subject of each version that is published, newest first, with the steps that convert the event down to it."""
    steps: tuple[Convert, ...] = ()
    yield contract.subject, steps
    for older, down in contract.older:
        steps = (*steps, down)
        yield older.subject, steps


def _converter(reader: EventReader, subject: str, steps: tuple[Convert, ...]) -> Convert:
    """Return the conversion from the emitted event to what *reader* would decode from *subject*."""
    steps += reader.upcasts(subject)
    if not steps:
        return _unchanged

    def convert(event: Event) -> Event:
        for step in steps:
            event = step(event)
        return event

    return convert


def _unchanged(event: Event) -> Event:
    return event
