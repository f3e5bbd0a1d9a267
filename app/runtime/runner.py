"""
A module, running: one pass is *take, think, save, answer*, and the door is the same for the web, the workers and the bus.

Whoever comes takes a seat. Everybody who sits when a pass begins (of many, half) goes through it together, in one
transaction: what was heard before drops out, the states that are needed are brought together, the module decides about
one event after the other, and everything that has changed is written at once. An event that cannot be decided loses only
itself. After the commit the askers get their answers, the bus its acknowledgements, and the relay what was said.
"""

from __future__ import annotations

__all__ = ["GIVE_WAY_MAX", "GIVE_WAY_SECONDS", "Observer", "Shell", "retry_seconds"]

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from loguru import logger

from app.messaging.cloudevents import origin, said_at, said_in
from app.messaging.outbox_relay import Relay
from app.runtime.batch import Batch
from app.runtime.engine import ShortWay, Step
from app.runtime.outage import Away
from app.runtime.receiving import turn_away
from app.runtime.service import Context, Overloaded, Told, Unavailable
from app.runtime.state_reader import Window
from app.runtime.work import Answering, Seat, Superseded, Verdict
from app.runtime.work_queue import WaitingRoom
from app.storage.module_store import Store
from app.storage.outbox import Parcel
from app.telemetry.logs import enabled
from app.telemetry.message_metrics import Handling
from app.telemetry.metrics import Metrics
from app.telemetry.trace import trace_id
from bus.contracts.event_reader import Hearing
from bus.contracts.registry import Contracts
from bus.errors import PutAside
from bus.port import Clock, Delivery, Subscription
from bus.replay_subjects import original
from bus.subjects import is_express
from modules.module import Decision, Module

FETCH_SECONDS = 1.0
RETRY_SECONDS = 0.5
RETRY_SECONDS_MAX = 30.0
GIVE_WAY_SECONDS = 1.0
GIVE_WAY_MAX = 2
"""How often, and how long each time, a lower version of an event waits for the higher one before it is acted on itself."""

SHEDDING_OVER = 0.9
"""Below this part of the cap the log says that shedding is over, lest it say so again and again."""

Observer = Callable[[Any, Decision, Seat], None]
"""Called on the loop for each event that was heard or said, after the commit."""


class Shell(Window):
    """One running module; see `app.runtime.service.Door` for what it promises to those who come."""

    def __init__(
        self,
        module: Module,
        store: Store,
        contracts: Contracts,
        relay: Relay,
        clock: Clock,
        metrics: Metrics,
        *,
        batch_max: int = 256,
        backlog: Callable[[], int] = lambda: 0,
        backlog_max: int = 20_000,
        observers: Mapping[type, Observer] | None = None,
        dice: random.Random | None = None,
    ) -> None:
        super().__init__(store)
        self.module = module
        self._store = store
        self.hears = Hearing(module.name, contracts, module.hears)
        self.relay = relay
        self._clock = clock
        self.think = Batch(module, store, contracts, clock)
        self.short_way: ShortWay | None = None
        """To the neighbours, where there is one."""
        self._batch_max = batch_max
        self._backlog = backlog
        self._backlog_max = backlog_max
        self._observers = dict(observers or {})
        self._dice = dice or random.Random()
        self._room: WaitingRoom[Seat] = WaitingRoom(batch_max * 4, lambda seat: seat.delivery is not None)
        self._in_versions: dict[str, Seat] = {}
        """Who sits for an event that is said in several versions, for the highest of them."""
        self._away = Away(self._room, store.database, clock, self._dice)
        self._is_stopped = False
        self._is_shedding = False
        self._handling = Handling(module.name, metrics)

    # Coming in

    async def tell(
        self,
        event: Any,
        *,
        id: str,
        context: Context,
        answer: Answering,
        express: bool = False,
        key: str | None = None,
        fingerprint: str = "",
        sheds: bool = False,
        fresh: str | None = None,
        is_new: bool = True,
    ) -> Told:
        """
        Tell the module that *event* happened; see `app.runtime.service.Door.tell`.

        With *is_new* false it may have been told before, under the same *id*: then nothing happens again.
        """
        if sheds:
            self._shed()
        if self._is_stopped:
            raise Unavailable("The server is shutting down.")
        if self._away.is_now:
            raise Unavailable("The database is out of reach.")
        future: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        inbox_id = key if key is not None else None if is_new else id
        seat = Seat(event, id, context, express, inbox_id, fingerprint if key else None, answer, future, fresh=fresh)
        self._room.sit(seat, express)
        return await future

    def _shed(self) -> None:
        """
        Let nobody in who can come again later, if too much is waiting.

        Raises:
            Overloaded: It is.
        """
        waiting, most = self._backlog() + len(self._room), self._backlog_max
        if waiting > most:
            if not self._is_shedding:
                self._is_shedding = True
                logger.warning("too much is waiting; new orders are refused", waiting=waiting, most=most)
            raise Overloaded("Too much is waiting; nothing was stored.", 2)
        if self._is_shedding and waiting <= most * SHEDDING_OVER:
            self._is_shedding = False
            logger.info("orders are taken again", waiting=waiting)

    async def listen(self, subscription: Subscription, is_express: bool = False) -> None:
        """Hear *subscription*, one lane, until cancelled; take no more than there is room for in that lane."""
        while True:
            free = await self._room.wait_for_space(is_express)
            for delivery in await subscription.fetch(min(free, self._batch_max), FETCH_SECONDS):
                try:
                    await self._hear(delivery)
                except Exception as error:  # nobody foresaw it; whatever it is, it is this message's trouble alone
                    await self._fail(delivery, error, None)

    async def _hear(self, delivery: Delivery) -> None:
        message = delivery.message
        subject = original(message.subject)
        versions = said_in(message)
        gives_way = versions is not None and self.hears.is_superseded(subject, versions)
        if gives_way and (higher := self._in_versions.get(origin(message)[0])) is not None:
            higher.lower += (delivery,)  # the better one sits already: this one shares its fate
            return
        try:
            event = self.hears.read(subject, message.body)
        except PutAside as error:
            await turn_away(delivery, error, self.hears, self._handling)
            return
        id, context = origin(message)
        express = is_express(subject)
        seat = Seat(event, id, context, express, id)
        seat.delivery = delivery
        seat.said_at = said_at(message)
        seat.gives_way = gives_way and delivery.tries <= GIVE_WAY_MAX
        if versions is not None and not gives_way:
            self._in_versions[id] = seat
        self._room.sit(seat, express)

    # One pass

    async def step(self) -> None:
        """Take everybody who sits, see them through, and answer."""
        batch = await self._room.take(self._batch_max)
        began = self._clock.monotonic()
        verdicts, trouble = await self._pass(batch, began)
        await self._answer(batch[: len(verdicts)], verdicts, began)
        if trouble is not None:
            await self._away.turn(batch[len(verdicts) :], trouble)

    async def _pass(self, batch: Sequence[Seat], began: float) -> tuple[Sequence[Verdict], Unavailable | None]:
        """
        See *batch* through, the short way if there is one and it is free.

        Return the verdicts; fewer than there are seats if the database went away meanwhile, and then that, too.
        """
        if self.short_way is not None:
            try:
                verdicts = await self.short_way.go(self, batch, began)
            except Unavailable as error:
                return [], error
            if verdicts is not None:
                return verdicts, None
        found, due, trouble = await self._see_through(batch)
        self.relay.take(due)
        return found, trouble

    def overhear(self, step: Step, began: float) -> None:
        """Let everybody know what was decided here on the short way."""
        said: dict[str | None, int] = defaultdict(int)
        ended: dict[tuple[str, str], int] = defaultdict(int)
        is_logged, is_observed = enabled("DEBUG"), bool(self._observers or self._watchers)
        for seat, subject, verdict in zip(step.seats, step.subjects, step.verdicts, strict=True):
            decision = verdict.decision
            if decision is not None and is_observed:
                self._tell_observers(seat, decision)
            if verdict.error is None:
                outcome = "handled" if decision is not None else "repeated"
                ended[subject, outcome] += 1
                said[seat.said_at] += 1
                if is_logged:
                    self._log_settled(seat, subject, outcome)
        for (subject, outcome), count in ended.items():
            self._handling.ended(subject, outcome, count)
        self._handling.took(self._clock.monotonic() - began, said, self._clock.now())

    async def _see_through(self, batch: Sequence[Seat]) -> tuple[list[Verdict], list[Parcel], Unavailable | None]:
        """
        Think *batch* and commit what follows; what the database will not write is found out one by one.

        Return the verdicts and what goes out; where the database went away, those of the seats before, and the trouble.
        """
        try:
            verdicts, due = await self._store.database.write(partial(self.think, batch), self.module.name)
            return verdicts, due, None
        except Unavailable as error:
            return [], [], error
        except Exception as error:  # a row that breaks a constraint, say: whose it is, only a single pass can tell
            if len(batch) == 1:
                return [Verdict(error=error)], [], None
        verdicts, due = [], []
        for seat in batch:
            found, parcels, trouble = await self._see_through([seat])
            verdicts += found
            due += parcels
            if trouble is not None:
                return verdicts, due, trouble
        return verdicts, due, None

    async def run(self) -> None:
        """Step until cancelled."""
        while True:
            await self.step()

    async def drain(self) -> None:
        """Take no more; return once nobody sits."""
        self._is_stopped = True
        await self._room.wait_until_empty()

    def pass_over(self, subject: str, count: int) -> None:
        """Count lower versions of what came on the short way in a higher one."""
        self._handling.ended(subject, "superseded", count)

    # Going out

    async def _answer(self, batch: Sequence[Seat], verdicts: Sequence[Verdict], began: float) -> None:
        now = self._clock.now()
        handle_seconds = self._clock.monotonic() - began
        for seat, verdict in zip(batch, verdicts, strict=True):
            if verdict.decision is not None:
                self._tell_observers(seat, verdict.decision)
            if seat.delivery is not None:
                await self._settle(seat.delivery, seat, verdict)
                if self._in_versions.pop(seat.id, None) is not None or seat.lower:
                    await self._settle_lower(seat, verdict)
                self._handling.took(handle_seconds, {seat.said_at: 1}, now)
            elif seat.future is not None and not seat.future.done():
                if verdict.told is not None:
                    seat.future.set_result(verdict.told)
                else:
                    assert verdict.error is not None
                    seat.future.set_exception(verdict.error)

    def _tell_observers(self, seat: Seat, decision: Decision) -> None:
        observer = self._observers.get(type(seat.event))
        if observer is not None:
            observer(seat.event, decision, seat)
        for event in decision.events:
            observer = self._observers.get(type(event))
            if observer is not None:
                observer(event, decision, seat)
        self.tell_watchers(decision.states)

    async def _settle_lower(self, seat: Seat, verdict: Verdict) -> None:
        """Be done with the lower versions of what *seat* sat for, or let them come again if it must."""
        for delivery in seat.lower:
            if verdict.error is None:
                self._handling.ended(original(delivery.message.subject), "superseded")
                await delivery.ack()
            else:
                await delivery.nak(GIVE_WAY_SECONDS, error="superseded")

    async def _settle(self, delivery: Delivery, seat: Seat, verdict: Verdict) -> None:
        subject = original(delivery.message.subject)
        if verdict.error is None:
            again = "superseded" if seat.gives_way else "repeated"
            outcome = "handled" if verdict.decision else again
            await delivery.ack()
            self._handling.ended(subject, outcome)
            self._log_settled(seat, subject, outcome)
            return
        if isinstance(verdict.error, Superseded):
            await delivery.nak(GIVE_WAY_SECONDS, error="superseded", detail=str(verdict.error))
            return
        await self._fail(delivery, verdict.error, seat.story.correlation_id)

    async def _fail(self, delivery: Delivery, error: Exception, correlation_id: str | None) -> None:
        """Let *delivery* come again after a while; five times, then it is a dead letter."""
        subject = original(delivery.message.subject)
        self._handling.ended(subject, "failed")
        detail = f"{type(error).__name__}: {error}"
        logger.warning(
            "message failed", consumer=self.module.name, subject=subject, tries=delivery.tries, detail=detail,
            message_id=delivery.message.id, correlation_id=correlation_id,
        )  # fmt: skip
        await delivery.nak(retry_seconds(delivery.tries, self._dice), error="failed", detail=detail)

    def _log_settled(self, seat: Seat, subject: str, outcome: str) -> None:
        if enabled("DEBUG"):
            logger.debug(
                "message settled", consumer=self.module.name, subject=subject, outcome=outcome, event_id=seat.id,
                correlation_id=seat.story.correlation_id, trace_id=trace_id(seat.story.traceparent),
            )  # fmt: skip


def retry_seconds(tries: int, dice: random.Random) -> float:
    """Return how long a message waits after its try *tries*: doubling, with jitter so that failures do not keep step."""
    return min(RETRY_SECONDS * 2.0 ** (tries - 1), RETRY_SECONDS_MAX) * dice.uniform(0.5, 1.5)
