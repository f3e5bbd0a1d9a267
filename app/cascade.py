"""
The short way from module to module, where all of them share one database and one process.

What a module says to its neighbours need not travel: within the transaction in which it is said, whoever hears it decides
about it, and whoever hears what he says, until nobody here has anything to add. An order goes as far as it can without
waiting for anybody outside, and is written once for it. What all whom it concerns have decided about is over: it is
counted, but neither sent nor kept, for nobody can hear it again.

It is only a short way. Whatever is heard by others too, or goes wrong for one of those who hear it, stays in the outbox
and takes the long one, over the bus, with its tries and dead letters; who has heard it already finds it in the inbox.
"""

from __future__ import annotations

__all__ = ["Cascade", "Passage", "ShortWay", "Step"]

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from attrs import define, field
from loguru import logger
from sqlalchemy import Connection

from app.batch import Batch
from app.database import Database
from app.door import Context, Unavailable
from app.outbox import Parcel
from app.seat import Seat, Verdict
from app.writes import Over, Said, Writes
from bus.hearing import Hearing
from bus.port import Clock
from bus.subjects import EXPRESS, is_express

if TYPE_CHECKING:
    from app.shell import Shell

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
    arrived: dict[str, list[str]] = field(factory=dict)
    """By module, the subjects of what it said that is over."""
    due: dict[str, list[Parcel]] = field(factory=dict)
    """By module, what has to take the long way."""
    superseded: list[tuple[str, str]] = field(factory=list)
    """Who did not look at which subject, because the same event came in a higher version."""


@define(eq=False)
class _Sitting:
    """Who sits in one module for this round: their *seats*, on which *subjects* they heard what was *said*."""

    seats: list[Seat] = field(factory=list)
    subjects: list[str] = field(factory=list)
    said: list[Said] = field(factory=list)


class Cascade:
    """Carry what *modules* say to each other."""

    def __init__(self, modules: Mapping[str, tuple[Batch, Hearing]], elsewhere: Collection[str], clock: Clock) -> None:
        """*elsewhere* are the subjects that others hear, too."""
        self._clock = clock
        self._batches = {name: batch for name, (batch, _) in modules.items()}
        self._ears: dict[str, tuple[tuple[str, Hearing], ...]] = {}
        for name, (_, hearing) in modules.items():
            for plain in hearing.subjects:
                for subject in (plain, plain + EXPRESS):
                    self._ears[subject] = (*self._ears.get(subject, ()), (name, hearing))
        self._elsewhere = {subject for plain in elsewhere for subject in (plain, plain + EXPRESS)}

    def __call__(self, name: str, batch: Sequence[Seat], connection: Connection) -> Passage:
        """Decide about *batch* in the module *name*, and about all that follows from it here; write it down."""
        now = self._clock.now()
        writes: dict[str, Writes] = {}
        passage = Passage()
        under_way: list[Said] = []
        sitting = {name: _Sitting(list(batch))}
        for _ in range(ROUNDS_MAX):
            fresh: list[Said] = []
            for who, those in sitting.items():
                verdicts, due = self._batches[who].think(those.seats, connection, writes.setdefault(who, Writes()), now)
                passage.steps.append(Step(who, those.seats, those.subjects, verdicts))
                for said, verdict in zip(those.said, verdicts, strict=False):
                    if verdict.error is not None:
                        said.is_settled = False
                fresh += due
            under_way += fresh
            sitting = self._seated(fresh, passage)
            if not sitting:
                break
        else:
            for those in sitting.values():
                for said in those.said:
                    said.is_settled = False
        left: dict[str, list[Said]] = {who: [] for who in writes}
        for said in under_way:
            if said.is_settled:
                passage.arrived.setdefault(said.speaker, []).append(said.parcel.subject)
            else:
                left[said.speaker].append(said)
        over = Over(under_way)
        for who, each in writes.items():
            self._batches[who].write(connection, each, over)
            passage.due[who] = self._batches[who].leaving(each.left(left[who]))
        return passage

    def _seated(self, fresh: Iterable[Said], passage: Passage) -> dict[str, _Sitting]:
        """Return who has to decide about *fresh*."""
        sitting: dict[str, _Sitting] = defaultdict(_Sitting)
        elsewhere, ears = self._elsewhere, self._ears
        for said in fresh:
            parcel = said.parcel
            subject, id = parcel.subject, parcel.event_id
            if subject in elsewhere:
                said.is_settled = False
                continue
            for name, hearing in ears.get(subject, ()):
                if parcel.versions is not None and hearing.is_superseded(subject, parcel.versions):
                    passage.superseded.append((name, subject))  # the higher one comes in this same round
                    continue
                # As if it had been read: what was said is what its body says, and frozen since.
                event = hearing.understand(subject, said.event)
                seat = Seat(
                    event, id, Context(parcel.correlation_id, parcel.traceparent), is_express(subject), id,
                    said_at=parcel.occurred_at, is_born=True,
                )  # fmt: skip
                those = sitting[name]
                those.seats.append(seat)
                those.subjects.append(subject)
                those.said.append(said)
        return sitting


class ShortWay:
    """Send the batches of *shells* down the cascade, and let everybody know what it did; on the loop."""

    def __init__(
        self, shells: Mapping[str, Shell], elsewhere: Collection[str], database: Database, clock: Clock
    ) -> None:
        """Open it; *elsewhere* are the subjects that others than *shells* hear, too."""
        self._shells = shells
        self._database = database
        self._cascade = Cascade({name: (shell.think, shell.hears) for name, shell in shells.items()}, elsewhere, clock)
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
