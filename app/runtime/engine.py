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

__all__ = ["Cascade", "Passage", "ShortWay", "Step"]

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from attrs import define, field, frozen
from loguru import logger
from sqlalchemy import Connection

from app.runtime.batch import Batch, fresh_in
from app.runtime.service import Unavailable
from app.runtime.unit_of_work import Said, Writes
from app.runtime.work import Seat, Verdict
from app.storage.outbox import Parcel
from app.storage.sql.database import Database
from bus.contracts.event_reader import Hearing
from bus.contracts.registry import Contracts
from bus.port import Clock
from bus.subjects import EXPRESS, Event, subject_of

if TYPE_CHECKING:
    from app.runtime.runner import Shell

ROUNDS_MAX = 8
"""After so many the rest takes the long way; no story of ours has more."""


@define(eq=False)
class Step:
    """What became of *seats* in the module *name*."""

    name: str
    seats: Sequence[Seat]
    subjects: Sequence[str]
    """On which each was heard; empty for those who came by themselves."""
    verdicts: Sequence[Verdict]


@define(eq=False)
class Passage:
    """What one transaction did: the first step is the one that was asked for, the others followed from it."""

    steps: list[Step] = field(factory=list)
    arrived: dict[str, list[str]] = field(factory=lambda: defaultdict(list))
    """By module, the subjects of what it said that is over."""
    due: dict[str, list[Parcel]] = field(factory=dict)
    """By module, what has to take the long way."""
    superseded: list[tuple[str, str]] = field(factory=list)
    """Who did not look at which subject, because the same event came in a higher version."""


@define(eq=False)
class _Sitting:
    """Who sits in one module for this round: their *seats*, and on which *subjects* they heard."""

    seats: list[Seat] = field(factory=list)
    subjects: list[str] = field(factory=list)


@frozen
class _Way:
    """Where an event goes that is said in one lane."""

    subjects: frozenset[str]
    """All under which it is said: one for each version."""
    elsewhere: frozenset[str]
    """Those that somebody else hears, too."""
    hearers: tuple[tuple[str, str, Callable[[Event], Event]], ...]
    """Who hears it here, under which of the others, and how the event becomes what he understands."""
    superseded: tuple[tuple[str, str], ...]
    """Who does not look at which subject, because the same event comes in a higher version."""


class Cascade:
    """Carry what *modules* say to each other."""

    def __init__(
        self,
        modules: Mapping[str, tuple[Batch, Hearing]],
        elsewhere: Collection[str],
        contracts: Contracts,
        clock: Clock,
    ) -> None:
        """*elsewhere* are the subjects that others hear, too."""
        self._clock = clock
        self._contracts = contracts
        self._batches = {name: batch for name, (batch, _) in modules.items()}
        self._hearings = {name: hearing for name, (_, hearing) in modules.items()}
        self._elsewhere = frozenset(subject for plain in elsewhere for subject in (plain, plain + EXPRESS))
        self._ways: dict[tuple[type, bool], _Way] = {}

    def __call__(self, name: str, batch: Sequence[Seat], connection: Connection) -> Passage:
        """Decide about *batch* in the module *name*, and about all that follows from it here; write it down."""
        now, fresh_ids = self._clock.now(), fresh_in(batch)
        writes: dict[str, Writes] = {}
        passage = Passage()
        under_way: list[Said] = []
        sitting = {name: _Sitting(list(batch))}
        for _ in range(ROUNDS_MAX):
            fresh: list[Said] = []
            for who, those in sitting.items():
                if who not in writes:
                    writes[who] = Writes(fresh_ids)
                verdicts, due = self._batches[who].think(those.seats, connection, writes[who], now)
                passage.steps.append(Step(who, those.seats, those.subjects, verdicts))
                for seat, subject, verdict in zip(those.seats, those.subjects, verdicts, strict=False):
                    if verdict.error is not None:
                        _send(seat, subject)
                fresh += due
            under_way += fresh
            sitting = self._seated(fresh, passage)
            if not sitting:
                break
        else:
            for those in sitting.values():
                for seat, subject in zip(those.seats, those.subjects, strict=True):
                    _send(seat, subject)
        left: dict[str, list[Said]] = {who: [] for who in writes}
        for said in under_way:
            subjects = self._way(said).subjects
            if said.travels:
                left[said.speaker].append(said)
                subjects -= said.travels
            passage.arrived[said.speaker] += subjects
        for who, each in writes.items():
            self._batches[who].write(connection, each, now)
            passage.due[who] = self._batches[who].leaving(each.left(left[who]))
        return passage

    def _seated(self, fresh: Iterable[Said], passage: Passage) -> dict[str, _Sitting]:
        """Return who has to decide about *fresh*."""
        sitting: dict[str, _Sitting] = defaultdict(_Sitting)
        for said in fresh:
            way = self._way(said)
            said.travels = way.elsewhere
            passage.superseded += way.superseded
            for name, subject, understood in way.hearers:
                # As if it had been read: what was said is what its body says, and frozen since.
                seat = Seat(
                    understood(said.event), None, said.cause.story, said.is_express, None,
                    said_at=said.said_at, said=said,
                )  # fmt: skip
                those = sitting[name]
                those.seats.append(seat)
                those.subjects.append(subject)
        return sitting

    def _way(self, said: Said) -> _Way:
        key = type(said.event), said.is_express
        way = self._ways.get(key)
        if way is None:
            way = self._ways[key] = self._found_way(*key)
        return way

    def _found_way(self, cls: type, is_express: bool) -> _Way:
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
                if contract.versions is not None and hearing.is_superseded(subject, contract.versions):
                    superseded.append((name, subject))
                else:
                    hearers.append((name, subject, _reader(hearing, subject, steps)))
        subjects = frozenset(subject + lane for subject, _ in said_in)
        return _Way(subjects, subjects & self._elsewhere, tuple(hearers), tuple(superseded))


_NOWHERE: frozenset[str] = frozenset()


def _send(seat: Seat, subject: str) -> None:
    """See to it that what *seat* heard under *subject* comes again, over the bus."""
    if seat.said is not None:
        seat.said.travels = (seat.said.travels or _NOWHERE) | {subject}


def _reader(hearing: Hearing, subject: str, steps: tuple[Callable[[Event], Event], ...]) -> Callable[[Event], Event]:
    def understood(event: Event) -> Event:
        for step in steps:
            event = step(event)
        return hearing.understand(subject, event)

    return understood


class ShortWay:
    """Send the batches of *shells* down the cascade, and let everybody know what it did; on the loop."""

    def __init__(
        self, shells: Mapping[str, Shell], elsewhere: Collection[str], database: Database, clock: Clock
    ) -> None:
        """Open it; *elsewhere* are the subjects that others than *shells* hear, too."""
        self._shells = shells
        self._database = database
        modules = {name: (shell.think, shell.hears) for name, shell in shells.items()}
        contracts = next(iter(shells.values())).think.contracts
        self._cascade = Cascade(modules, elsewhere, contracts, clock)
        for shell in shells.values():
            shell.short_way = self

    async def go(self, shell: Shell, batch: Sequence[Seat], began: float) -> Sequence[Verdict] | None:
        """
        Return what became of *batch*, or None where something on the way raised: then nothing has happened.

        Raises:
            Unavailable: The database is out of reach; nothing was kept.
        """
        name = shell.module.name
        try:
            passage = await self._database.write(partial(self._cascade, name, batch), name)
        except Unavailable:
            raise
        except Exception as error:  # a row that breaks a constraint, say; step by step it is told whose it is
            logger.debug("the short way is blocked", module=name, detail=repr(error))
            return None
        for who, subjects in passage.arrived.items():
            self._shells[who].relay.arrived(subjects)
        for who, parcels in passage.due.items():
            self._shells[who].relay.take(parcels)
        for (who, subject), count in Counter(passage.superseded).items():
            self._shells[who].pass_over(subject, count)
        for step in passage.steps[1:]:
            self._shells[step.name].overhear(step, began)
        return passage.steps[0].verdicts
