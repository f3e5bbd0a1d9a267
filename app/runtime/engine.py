"""
The transaction engine: one transaction decides about a batch and about everything that follows from it locally.

A round decides about one batch per module. The events that a round emits are delivered, within the same transaction, to
the modules that subscribe to them (`app.runtime.local_routing`), and their decisions are the next round, until no module
emits anything new. An event whose subscribers have all decided is finished: it is counted, but neither stored nor sent.

An event goes to the outbox, and from there over the bus, when a consumer outside these modules subscribes to it, when a
subscriber fails to decide about it, or when the rounds run out. Subscribers that have decided about it already find it
in their inbox. With an empty routing table there is one round and every event goes to the outbox.
"""

from __future__ import annotations

__all__ = ["CommitResult", "ModuleResult", "TransactionEngine"]

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from attrs import define, field
from sqlalchemy import Connection

from app.runtime.batch import BatchProcessor, new_keys
from app.runtime.local_routing import LocalRoutes
from app.runtime.unit_of_work import UnitOfWork
from app.runtime.work import ItemResult, OutgoingEvent, WorkItem
from bus.port import Clock

ROUNDS_MAX = 8
"""After this many rounds the remaining events go over the bus; no saga of ours needs as many."""

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


class TransactionEngine:
    """Decide about batches inside a transaction; the same code with and without local delivery."""

    def __init__(self, processors: Mapping[str, BatchProcessor], routes: LocalRoutes, clock: Clock) -> None:
        self._processors = processors
        self._routes = routes
        self._clock = clock
        self.delivers_locally = bool(routes)
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
        generated = new_keys(items)
        units: dict[str, UnitOfWork] = defaultdict(lambda: UnitOfWork(generated))
        result: CommitResult = defaultdict(ModuleResult)
        due = self._decide_in_rounds(module, items, is_local, units, result, now, connection)
        to_publish = self._divide(due, result) if is_local else {module: due}
        for name, unit in units.items():
            self._processors[name].flush(unit, now, connection)
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
        for event in emitted:
            route = self._routes.route(type(event.event), event.is_express)
            event.subjects, event.remote_subjects = route.subjects, route.remote_subjects
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
