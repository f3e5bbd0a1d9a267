"""
The transaction engine: one transaction decides about a batch and about everything that follows from it locally.

A round decides about one batch per module. The events that a round emits are delivered, within the same transaction, to
the modules that subscribe to them, and their decisions are the next round, until no module emits anything new. An event
whose subscribers have all decided is finished: it is counted, but neither stored nor sent.

An event goes to the outbox, and from there over the bus, when a consumer outside these modules subscribes to it, when a
subscriber fails to decide about it, or when the rounds run out. Subscribers that have decided about it already find it
in their inbox.

`LocalRoutes` is the routing table. Local delivery needs modules that share a process and a database. With NATS, or with a
database for each module, the table has no subscribers: there is one round, and every event goes to the outbox.
"""

from __future__ import annotations

__all__ = [
    "CommitResult",
    "LocalRoutes",
    "ModuleResult",
    "TransactionEngine",
    "direct_takers",
    "failed_commit",
]

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import count

from attrs import define, field, frozen
from sqlalchemy import Connection

from app.runtime.batch import BatchProcessor, new_keys
from app.runtime.receiving import EventReader
from app.runtime.work import ItemResult, OutgoingEvent, TakeEvent, UnitOfWork, WorkItem
from bus.contracts.contract import Contract
from bus.contracts.registry import ContractRegistry
from bus.port import Clock
from bus.subjects import EXPRESS, Event, subject_of
from modules.module import Module

ROUNDS_MAX = 8
"""After this many rounds the remaining events go over the bus; no saga of this project needs as many."""

_NO_SUBJECTS: frozenset[str] = frozenset()


@define(eq=False)
class ModuleResult:
    """What one transaction did in one module."""

    items: list[WorkItem] = field(factory=list)
    results: list[ItemResult] = field(factory=list)
    """One for each of *items*."""
    delivered_subjects: list[str] = field(factory=list)
    """The subjects of its events that were delivered locally."""
    to_publish: list[OutgoingEvent] = field(factory=list)
    """Its events that have outbox rows which are due now."""
    superseded_subjects: list[str] = field(factory=list)
    """The subjects that it skipped, because the same event came in a newer version."""


CommitResult = dict[str, ModuleResult]
"""What one transaction did, by module."""


def failed_commit(module: str, item: WorkItem, error: Exception) -> CommitResult:
    """Return what a transaction of *module* about *item* alone did that was rolled back because of *error*."""
    return {module: ModuleResult([item], [ItemResult(error=error)])}


class TransactionEngine:
    """Decide about batches inside a transaction; the same code with and without local delivery."""

    def __init__(self, processors: Mapping[str, BatchProcessor], routes: LocalRoutes, clock: Clock) -> None:
        self._processors = processors
        self._routes = routes
        self._clock = clock
        self.delivers_locally = routes.has_subscribers
        """True when the routing table has subscribers."""

    def __call__(
        self, module: str, items: Sequence[WorkItem], is_local: bool, connection: Connection
    ) -> CommitResult:
        """
        Decide about *items* of *module*, deliver locally if *is_local*, and write everything that follows.

        Raises:
            Exception: A statement failed, or an event breaks the schema of an older version; the caller rolls back.
        """
        now = self._clock.now()
        generated, positions = new_keys(items), count()
        units: dict[str, UnitOfWork] = defaultdict(lambda: UnitOfWork(generated, positions))
        result: CommitResult = defaultdict(ModuleResult)
        due = self._decide_in_rounds(module, items, is_local, units, result, now, connection)
        to_publish = self._divide(due, result) if is_local else {module: due}
        has_history = False
        for name, unit in units.items():
            has_history = self._processors[name].flush(unit, now, connection, is_first=not has_history)
            result[name].to_publish = unit.without_cancelled(to_publish.get(name, []))
        return result

    def _decide_in_rounds(
        self,
        module: str,
        items: Sequence[WorkItem],
        is_local: bool,
        units: dict[str, UnitOfWork],
        result: CommitResult,
        now: datetime,
        connection: Connection,
    ) -> list[OutgoingEvent]:
        """Decide round by round; return all events that are due now."""
        due: list[OutgoingEvent] = []
        batches: Mapping[str, Sequence[WorkItem]] = {module: items}
        for _ in range(ROUNDS_MAX):
            emitted: list[OutgoingEvent] = []
            for name, batch in batches.items():
                results, events = self._processors[name].decide(batch, units[name], now, connection)
                outcome = result[name]
                outcome.items += batch
                outcome.results += results
                emitted += events
                for item, each in zip(batch, results, strict=True):
                    if each.error is not None:
                        _divert_to_bus(item)
            due += emitted
            batches = self._deliver(emitted, result) if is_local else {}
            if not batches:
                return due
        for batch in batches.values():
            for item in batch:
                _divert_to_bus(item)
        return due

    def _deliver(self, emitted: Iterable[OutgoingEvent], result: CommitResult) -> dict[str, list[WorkItem]]:
        """Return the work items that deliver *emitted* to the modules that subscribe, by module."""
        batches: dict[str, list[WorkItem]] = defaultdict(list)
        routes = self._routes
        for event in emitted:
            route = routes[type(event.event), event.is_express]
            event.subjects = route.subjects
            event.remote_subjects = remote_subjects = route.remote_subjects
            event.is_delivered_locally = not remote_subjects
            for name, subject in route.superseded:
                result[name].superseded_subjects.append(subject)
            for name, subject, convert in route.subscribers:
                # Decoding is not needed: the event was validated when it was staged, and it is immutable.
                batches[name].append(
                    WorkItem(
                        convert(event.event), None, event.cause.origin_trace, event.is_express, None,
                        subject=subject, occurred_at=event.occurred_at, cause=event,
                    )
                )  # fmt: skip
        return batches

    def _divide(self, due: Iterable[OutgoingEvent], result: CommitResult) -> dict[str, list[OutgoingEvent]]:
        """Note which subjects of *due* were delivered locally; return the events that the bus has to carry, by producer."""
        to_publish: dict[str, list[OutgoingEvent]] = defaultdict(list)
        for event in due:
            subjects = event.subjects
            if event.remote_subjects:
                to_publish[event.producer].append(event)
                subjects -= event.remote_subjects
            result[event.producer].delivered_subjects += subjects
        return to_publish


def _divert_to_bus(item: WorkItem) -> None:
    """Let the bus carry the event that *item* delivers locally, so that it is delivered again, with tries and dead letters."""
    if item.cause is not None:
        item.cause.remote_subjects = (item.cause.remote_subjects or _NO_SUBJECTS) | {item.subject}
        item.cause.is_delivered_locally = False


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


class LocalRoutes(dict[tuple[type, bool], LocalRoute]):
    """
    The routing table: event class and whether it is express → `LocalRoute`; a route is made when it is first looked up.

    With `has_subscribers` false, nothing is delivered locally.
    """

    def __init__(
        self, readers: Mapping[str, EventReader], remote_subjects: Collection[str], contracts: ContractRegistry
    ) -> None:
        """
        Build the table for the modules that *readers* names.

        *remote_subjects*, without their lane, are also consumed outside these modules: by a worker, for example.
        """
        super().__init__()
        self._readers = dict(readers)
        self._remote = frozenset(each for subject in remote_subjects for each in (subject, subject + EXPRESS))
        self._contracts = contracts
        self.has_subscribers = bool(self._readers)

    def __missing__(self, key: tuple[type, bool]) -> LocalRoute:
        route = self[key] = self._build_route(*key)
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

    *modules* are all modules, those of other processes included: what two consumers read stays on the bus.
    """
    modules = list(modules)
    consumed = [(name, cls) for module in modules for name, classes in module.workers.items() for cls in classes]
    consumers = Counter(cls for _, cls in consumed) + Counter(cls for module in modules for cls in module.consumes)
    return {cls: takers[name] for name, cls in consumed if consumers[cls] == 1 and name in takers}


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
