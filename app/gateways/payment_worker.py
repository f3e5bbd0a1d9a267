"""
The worker at the payment gateway: hears what is to be asked, asks, and tells the answer through the door.

It never holds a transaction, and a provider in trouble costs no message a try: an attempt that brought no answer is an
answer too, and the module puts the next attempt into its outbox. Calls go out under a key that belongs to the order.
For one order it asks one thing at a time: a copy of a message that comes late, beside the attempt that followed it, would
find no charge and make a second one, at a provider that knows no keys. While the circuit breaker is open the
subscriptions pause. What is in hand stays in hand, as long as that may last; what is still in the bus waits there.
"""

from __future__ import annotations

__all__ = ["CONSUMER", "FRESH_SECONDS", "HEARS", "GatewayWorker"]

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from attrs import define, field
from loguru import logger

from app.gateways.breaker_wait import Gate
from app.gateways.circuit_breaker import Breaker, BreakerOpen, BreakerState
from app.gateways.delay_notifier import Delays, noted
from app.gateways.gateway_calls import CALLS_MAX, LANE_CALLS_MAX, Calls, Task
from app.gateways.port import Gateway
from app.messaging.cloudevents import origin, said_at, said_in
from app.runtime.receiving import turn_away
from app.runtime.runner import GIVE_WAY_MAX, GIVE_WAY_SECONDS, Shell, retry_seconds
from app.runtime.service import Context, Shed
from app.telemetry.message_metrics import Handling
from app.telemetry.metrics import Metrics
from bus.contracts.event_reader import Hearing
from bus.contracts.registry import Contracts
from bus.errors import PutAside
from bus.ids import caused_id
from bus.port import Clock, Delivery, Subscription
from bus.replay_subjects import original
from bus.subjects import is_express
from modules.payments.events import ChargeFailed, ChargeRequested, RefundFailed, RefundRequested
from modules.payments.state import Payment, PaymentStatus

T = TypeVar("T")

CONSUMER = "payments-gateway"
HEARS: tuple[type, ...] = (ChargeRequested, RefundRequested)

FRESH_SECONDS = 60.0
"""
A request that is older is compared with our own books first: they know whether somebody has called for it.

Shorter than a broker remembers a message, so that a copy that it lets through is never taken for a first request.
"""

LANE_IN_HAND_MAX = 512
"""Messages of one lane that are called for, or whose answers wait for our database."""

BEAT_SECONDS = 10.0
FETCH_SECONDS = 1.0


class _Leaving(Exception):
    """The house is closing: what waits for the breaker goes back to the outbox."""


@define(eq=False)
class _Lane:
    """What is in hand of one subscription: calls that are out, and answers that are being told."""

    calling: set[asyncio.Task[None]] = field(factory=set)
    in_hand: int = 0


class GatewayWorker:
    """Call the gateway for payments, up to `CALLS_MAX` times at once."""

    def __init__(
        self,
        shell: Shell,
        gateway: Gateway,
        breaker: Breaker,
        contracts: Contracts,
        clock: Clock,
        metrics: Metrics,
        dice: random.Random | None = None,
    ) -> None:
        self._shell = shell
        self._gateway = gateway
        self._breaker = breaker
        self._hears = Hearing(CONSUMER, contracts, HEARS)
        self._clock = clock
        self._handling = Handling(shell.module.name, metrics)
        self._dice = dice or random.Random()
        self._ask = Calls(gateway, breaker, metrics, self._dice)
        self._started_at = self._well_since = clock.now()
        self._calls: dict[asyncio.Task[None], Delivery] = {}
        self._lanes: list[_Lane] = []
        self._last_at: dict[str, asyncio.Task[None]] = {}
        """Of each order that somebody is at, who came last."""
        self._has_room = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._is_leaving = False
        self._beat: asyncio.Task[None] | None = None
        self.delays = Delays(shell, CONSUMER, breaker, clock)
        self._gate = Gate(breaker, clock)
        breaker.follow(self._breaker_changed)

    async def listen(self, subscription: Subscription) -> None:
        """Hear *subscription* until cancelled, no more at once than may call."""
        self._subscriptions.append(subscription)
        if self._beat is None:
            self._beat = asyncio.create_task(self._keep())
        lane = _Lane()
        self._lanes.append(lane)
        while True:
            while (limit := self._room_in(lane)) <= 0:
                self._has_room.clear()
                await self._has_room.wait()
            if self._breaker.state is not BreakerState.CLOSED:
                await self._gate.passable()
                limit = min(limit, self._breaker.probes)
            if subscription.is_paused:
                subscription.resume()
            for delivery in await subscription.fetch(limit, FETCH_SECONDS):
                call = asyncio.create_task(self._handle(delivery, lane))
                self._calls[call] = delivery
                lane.calling.add(call)
                lane.in_hand += 1
                call.add_done_callback(partial(self._done, lane))

    async def drain(self, seconds: float) -> None:
        """Let the calls that are out come back, for up to *seconds*; what has not by then comes again."""
        self._is_leaving = True
        self._gate.open_for_good()
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=seconds)
            for call in late:
                call.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def close(self) -> None:
        """Hang up. Idempotent."""
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)
        await self.delays.close()
        await self._gateway.close()

    async def _keep(self) -> None:
        """Tell the bus of what takes long that somebody is still at it."""
        while True:
            await self._clock.sleep(BEAT_SECONDS)
            for delivery in list(self._calls.values()):
                try:
                    await delivery.in_progress()
                except Exception as error:  # the others want to be told of, too
                    logger.warning("a message in hand may come again", consumer=CONSUMER, detail=repr(error))

    def _breaker_changed(self, state: BreakerState) -> None:
        for subscription in self._subscriptions:
            if state is BreakerState.OPEN:
                subscription.pause()
            elif state is BreakerState.CLOSED:
                subscription.resume()
        if state is BreakerState.CLOSED:
            self._well_since = self._clock.now()

    def _room_in(self, lane: _Lane) -> int:
        """Return how many more may be taken in *lane*."""
        calling = sum(len(each.calling) for each in self._lanes)
        return min(CALLS_MAX - calling, LANE_CALLS_MAX - len(lane.calling), LANE_IN_HAND_MAX - lane.in_hand)

    def _done(self, lane: _Lane, call: asyncio.Task[None]) -> None:
        self._calls.pop(call, None)
        lane.calling.discard(call)
        lane.in_hand -= 1
        self._has_room.set()
        if not call.cancelled() and (error := call.exception()) is not None:
            logger.opt(exception=error).error("the gateway worker failed")

    async def _handle(self, delivery: Delivery, lane: _Lane) -> None:
        message = delivery.message
        subject = original(message.subject)
        versions = said_in(message)
        try:
            event = self._hears.read(subject, message.body)
        except PutAside as error:
            await turn_away(delivery, error, self._hears, self._handling)
            return
        is_lower = versions is not None and self._hears.is_superseded(subject, versions)
        if is_lower and delivery.tries <= GIVE_WAY_MAX:
            await delivery.nak(GIVE_WAY_SECONDS, error="superseded")
            return
        id, context = origin(message)
        me, before = asyncio.current_task(), self._last_at.get(event.order_id)
        assert me is not None
        self._last_at[event.order_id] = me
        try:
            if before is not None:
                await asyncio.wait((before,))
            task = self._task(event, delivery, id, context, is_alone=before is None)
            answer = await (self._charge(task) if isinstance(event, ChargeRequested) else self._refund(task))
            lane.calling.discard(me)  # the line is free, however long our own database takes
            self._has_room.set()
            is_news = answer is not None and await self._tell(task, answer)
        except Exception as error:  # whatever it is, it is this message's trouble: five tries, then a dead letter
            detail = f"{type(error).__name__}: {error}"
            logger.warning("message failed", consumer=CONSUMER, detail=detail, correlation_id=context.correlation_id)
            await delivery.nak(retry_seconds(delivery.tries, self._dice), detail=detail)
            self._handling.ended(subject, "failed")
            return
        finally:
            if self._last_at.get(event.order_id) is me:
                del self._last_at[event.order_id]
        self._handling.ended(subject, "handled" if is_news else "superseded" if is_lower else "repeated")
        await delivery.ack()

    def _task(self, event: Any, delivery: Delivery, id: str, context: Context, *, is_alone: bool) -> Task:
        """Return what *delivery* asks for, now that it is its turn; *is_alone* if it need not wait for that."""
        asked_at = _moment(said_at(delivery.message))
        is_repeat = self._is_repeat(delivery, id, asked_at)
        is_first = is_alone and not is_repeat and event.attempt == 1 and getattr(event, "is_wanted", True)
        # Whatever is old, or waited while the breaker was open, may be about an order that is cancelled or paid by now.
        fresh_since = max(self._well_since, self._clock.now() - timedelta(seconds=FRESH_SECONDS))
        is_well = self._breaker.state is BreakerState.CLOSED
        is_late = not (is_first and is_well and asked_at is not None and asked_at >= fresh_since)
        return Task(event, id, context, is_express(original(delivery.message.subject)), is_first, is_late, is_repeat)

    async def _tell(self, task: Task, answer: Any) -> bool:
        """Tell *answer*; return whether it is news. It is none for a copy of what was heard, and told, before."""
        # Asked twice (we were killed in between), the gateway may answer in two ways, and both are news.
        kind = f"{type(answer).__name__}.{getattr(answer, 'is_unknown', False)}"
        answer_id = caused_id(task.id, f"{CONSUMER}.{kind}")
        told = await self._patiently(
            lambda: self._shell.tell(
                answer, id=answer_id, context=task.context, answer=noted, express=task.express, is_new=False
            )
        )
        return not told.is_replay

    def _is_repeat(self, delivery: Delivery, id: str, asked_at: datetime | None) -> bool:
        """
        Tell whether somebody may have heard this before: we, who ran before us, or anybody beside us.

        Not every provider knows a repeated key; so whatever may be a repetition is looked up first. Who ran before us may
        have called and been killed before it could say so, and even our own books would not know.
        """
        is_again = delivery.tries > 1 or delivery.message.id != id
        return is_again or asked_at is None or asked_at < self._started_at

    # Calls

    async def _charge(self, task: Task) -> Any:
        """
        Have the money taken, and wait for the breaker as long as it takes; return what to tell.

        Nothing (None) where our books know that the attempt brought its answer, and that another will follow.
        """
        event: ChargeRequested = task.event
        is_wanted, is_first = event.is_wanted, task.is_first
        is_late, is_held = task.is_late, False
        while True:
            if is_late:
                payment: Payment | None = await self._patiently(lambda: self._shell.get(Payment, event.order_id))
                is_wanted = is_wanted and _is_wanted(payment)
                if is_wanted and payment is not None and payment.attempts > event.attempt:
                    return None
                is_first = is_first and payment is not None and payment.calls == 0
            if is_first and not is_wanted:  # cancelled while it waited, and never sent
                return ChargeFailed(order_id=event.order_id, is_unknown=False, retry_seconds=0, calls=0)
            try:
                return await self._ask.charge(task, is_wanted=is_wanted, is_first=is_first)
            except BreakerOpen:
                if not is_held:
                    await self._patiently(lambda: self.delays.tell(event.order_id, task.context, task.express))
                try:
                    await self._hold()
                except _Leaving:
                    wait_seconds = self._ask.retry_seconds(1)
                    return ChargeFailed(
                        order_id=event.order_id, is_unknown=task.is_repeat, retry_seconds=wait_seconds, calls=0
                    )
            is_held = is_late = True

    async def _refund(self, task: Task) -> Any:
        """Have the money given back, and wait for the breaker as long as it takes; return what to tell."""
        while True:
            try:
                return await self._ask.refund(task)
            except BreakerOpen:
                try:
                    await self._hold()
                except _Leaving:
                    wait_seconds = self._ask.retry_seconds(1)
                    return RefundFailed(order_id=task.event.order_id, retry_seconds=wait_seconds, calls=0)

    async def _hold(self) -> None:
        """
        Return when it is worth asking the breaker again.

        Raises:
            _Leaving: It is not worth waiting any more.
        """
        if not self._is_leaving:
            await self._gate.wait()
        if self._is_leaving:
            raise _Leaving

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until the database answers; the message stays ours meanwhile and spends no try."""
        while True:
            try:
                return await ask()
            except Shed as shed:
                await self._clock.sleep(shed.retry_after_seconds)


def _is_wanted(payment: Payment | None) -> bool:
    """Tell whether its money is still to be taken: the order may have been cancelled while the request waited."""
    return (
        payment is not None
        and payment.status in (PaymentStatus.PENDING, PaymentStatus.UNKNOWN)
        and not (payment.is_cancelled or payment.is_put_aside)
    )


def _moment(text: str | None) -> datetime | None:
    with suppress(ValueError, TypeError):
        moment = datetime.fromisoformat(text or "")
        return moment if moment.tzinfo is not None else None
    return None
