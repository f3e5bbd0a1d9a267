"""
The short way from module to module, where all of them share one database and one process.

What a module says to its neighbours need not travel: within the transaction in which it is said, whoever hears it decides
about it, and whoever hears what he says, until nobody here has anything to add. An order goes as far as it can without
waiting for anybody outside, and is written once for it. An event is over once every module that hears it has decided: it
is counted, but neither stored nor sent, for nobody can hear it again.

It is only a short way. Whatever is heard by others too, or goes wrong for one of those who hear it, stays in the outbox
and takes the long one, over the bus, with its tries and dead letters; who has heard it already finds it in the inbox.
"""

from __future__ import annotations

__all__ = ["CommitResult", "ModuleStep", "ShortWay", "TransactionEngine"]

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from attrs import define, field, frozen
from loguru import logger
from sqlalchemy import Connection

from app.runtime.batch import BatchProcessor, new_keys
from app.runtime.unit_of_work import UnitOfWork
from app.runtime.work import ItemResult, OutgoingEvent, WorkItem
from app.storage.errors import StorageUnavailable
from app.storage.outbox import OutboxMessage
from app.storage.sql.database import Database
from bus.contracts.event_reader import EventReader
from bus.contracts.registry import ContractRegistry
from bus.port import Clock
from bus.subjects import EXPRESS, Event, subject_of

if TYPE_CHECKING:
    from app.runtime.runner import ModuleRunner

ROUNDS_MAX = 8
"""After so many the rest takes the long way; no story of ours has more."""


@define(eq=False)
class ModuleStep:
    """What became of *seats* in the module *name*."""

    module: str
    items: Sequence[WorkItem]
    subjects: Sequence[str]
    """On which each was heard; empty for those who came by themselves."""
    results: Sequence[ItemResult]


@define(eq=False)
class CommitResult:
    """What one transaction did: the first step is the one that was asked for, the others followed from it."""

    steps: list[ModuleStep] = field(factory=list)
    delivered: dict[str, list[str]] = field(factory=lambda: defaultdict(list))
    """By module, the subjects of what it said that is over."""
    to_publish: dict[str, list[OutboxMessage]] = field(factory=dict)
    """By module, what has to take the long way."""
    superseded: list[tuple[str, str]] = field(factory=list)
    """Who did not look at which subject, because the same event came in a higher version."""


@define(eq=False)
class _RoundBatch:
    """Who sits in one module for this round: their *seats*, and on which *subjects* they heard."""

    items: list[WorkItem] = field(factory=list)
    subjects: list[str] = field(factory=list)


@frozen
class LocalRoute:
    """Where an event goes that is said in one lane."""

    subjects: frozenset[str]
    """All under which it is said: one for each version."""
    remote_subjects: frozenset[str]
    """Those that somebody else hears, too."""
    subscribers: tuple[tuple[str, str, Callable[[Event], Event]], ...]
    """Who hears it here, under which of the others, and how the event becomes what he understands."""
    superseded: tuple[tuple[str, str], ...]
    """Who does not look at which subject, because the same event comes in a higher version."""


class TransactionEngine:
    """Carry what *modules* say to each other."""

    def __init__(
        self,
        modules: Mapping[str, tuple[BatchProcessor, EventReader]],
        elsewhere: Collection[str],
        contracts: ContractRegistry,
        clock: Clock,
    ) -> None:
        """*elsewhere* are the subjects that others hear, too."""
        self._clock = clock
        self._contracts = contracts
        self._batches = {name: batch for name, (batch, _) in modules.items()}
        self._hearings = {name: hearing for name, (_, hearing) in modules.items()}
        self._elsewhere = frozenset(subject for plain in elsewhere for subject in (plain, plain + EXPRESS))
        self._ways: dict[tuple[type, bool], LocalRoute] = {}

    def __call__(self, name: str, batch: Sequence[WorkItem], connection: Connection) -> CommitResult:
        """Decide about *batch* in the module *name*, and about all that follows from it here; write it down."""
        now, fresh_ids = self._clock.now(), new_keys(batch)
        writes: dict[str, UnitOfWork] = {}
        passage = CommitResult()
        under_way: list[OutgoingEvent] = []
        sitting = {name: _RoundBatch(list(batch))}
        for _ in range(ROUNDS_MAX):
            fresh: list[OutgoingEvent] = []
            for who, those in sitting.items():
                if who not in writes:
                    writes[who] = UnitOfWork(fresh_ids)
                results, due = self._batches[who].decide(those.items, connection, writes[who], now)
                passage.steps.append(ModuleStep(who, those.items, those.subjects, results))
                for item, subject, result in zip(those.items, those.subjects, results, strict=False):
                    if result.error is not None:
                        _divert_to_bus(item, subject)
                fresh += due
            under_way += fresh
            sitting = self._seated(fresh, passage)
            if not sitting:
                break
        else:
            for those in sitting.values():
                for item, subject in zip(those.items, those.subjects, strict=True):
                    _divert_to_bus(item, subject)
        left: dict[str, list[OutgoingEvent]] = {who: [] for who in writes}
        for said in under_way:
            subjects = self._way(said).subjects
            if said.remote_subjects:
                left[said.producer].append(said)
                subjects -= said.remote_subjects
            passage.delivered[said.producer] += subjects
        for who, each in writes.items():
            self._batches[who].flush(connection, each, now)
            passage.to_publish[who] = self._batches[who].to_publish(each.without_cancelled(left[who]))
        return passage

    def _seated(self, fresh: Iterable[OutgoingEvent], passage: CommitResult) -> dict[str, _RoundBatch]:
        """Return who has to decide about *fresh*."""
        sitting: dict[str, _RoundBatch] = defaultdict(_RoundBatch)
        for said in fresh:
            way = self._way(said)
            said.remote_subjects = way.remote_subjects
            passage.superseded += way.superseded
            for name, subject, understood in way.subscribers:
                # As if it had been read: what was said is what its body says, and frozen since.
                item = WorkItem(
                    understood(said.event), None, said.cause.origin_trace, said.is_express, None,
                    occurred_at=said.occurred_at, cause=said,
                )  # fmt: skip
                those = sitting[name]
                those.items.append(item)
                those.subjects.append(subject)
        return sitting

    def _way(self, said: OutgoingEvent) -> LocalRoute:
        key = type(said.event), said.is_express
        way = self._ways.get(key)
        if way is None:
            way = self._ways[key] = self._found_way(*key)
        return way

    def _found_way(self, cls: type, is_express: bool) -> LocalRoute:
        contract = self._contracts[subject_of(cls)]
        hearers, superseded = [], []
        downs: tuple[Callable[[Event], Event], ...] = ()
        said_in = [(contract.subject, downs)]
        for older, down in contract.older:
            downs = (*downs, down)
            said_in.append((older.subject, downs))
        lane = EXPRESS if is_express else ""
        for plain, steps in said_in:
            subject = plain + lane
            for name, hearing in self._hearings.items():
                if subject in self._elsewhere or plain not in hearing.subjects:
                    continue
                if contract.versions is not None and hearing.has_newer(subject, contract.versions):
                    superseded.append((name, subject))
                else:
                    hearers.append((name, subject, _reader(hearing, subject, steps)))
        subjects = frozenset(subject + lane for subject, _ in said_in)
        return LocalRoute(subjects, subjects & self._elsewhere, tuple(hearers), tuple(superseded))


_NOWHERE: frozenset[str] = frozenset()


def _divert_to_bus(item: WorkItem, subject: str) -> None:
    """See to it that what *seat* heard under *subject* comes again, over the bus."""
    if item.cause is not None:
        item.cause.remote_subjects = (item.cause.remote_subjects or _NOWHERE) | {subject}


def _reader(hearing: EventReader, subject: str, steps: tuple[Callable[[Event], Event], ...]) -> Callable[[Event], Event]:
    def understood(event: Event) -> Event:
        for step in steps:
            event = step(event)
        return hearing.upcast(subject, event)

    return understood


class ShortWay:
    """Send the batches of *shells* down the cascade, and let everybody know what it did; on the loop."""

    def __init__(
        self, runners: Mapping[str, ModuleRunner], elsewhere: Collection[str], database: Database, clock: Clock
    ) -> None:
        """Open it; *elsewhere* are the subjects that others than *shells* hear, too."""
        self._runners = runners
        self._database = database
        modules = {name: (runner.processor, runner.reader) for name, runner in runners.items()}
        contracts = next(iter(runners.values())).processor.contracts
        self._cascade = TransactionEngine(modules, elsewhere, contracts, clock)
        for runner in runners.values():
            runner.short_way = self

    async def go(self, runner: ModuleRunner, batch: Sequence[WorkItem], began: float) -> Sequence[ItemResult] | None:
        """
        Return what became of *batch*, or None where something on the way raised: then nothing has happened.

        Raises:
            Unavailable: The database is out of reach; nothing was kept.
        """
        name = runner.module.name
        try:
            passage = await self._database.write(partial(self._cascade, name, batch), name)
        except StorageUnavailable:
            raise
        except Exception as error:  # a row that breaks a constraint, say; step by step it is told whose it is
            logger.debug("the short way is blocked", module=name, detail=repr(error))
            return None
        for who, subjects in passage.delivered.items():
            self._runners[who].relay.count_delivered(subjects)
        for who, outbox_messages in passage.to_publish.items():
            self._runners[who].relay.publish(outbox_messages)
        for (who, subject), count in Counter(passage.superseded).items():
            self._runners[who].pass_over(subject, count)
        for step in passage.steps[1:]:
            self._runners[step.module].overhear(step, began)
        return passage.steps[0].results
