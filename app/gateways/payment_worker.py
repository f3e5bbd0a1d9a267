"""
The worker at the payment gateway: hears what is to be asked, asks, and tells the answer through the door.

It never holds a transaction, and a provider in trouble costs no message a try: an attempt that brought no answer is an
answer too, and the module puts the next attempt into its outbox. Calls go out under a key that belongs to the order.
For one order it asks one thing at a time: a copy of a message that comes late, beside the attempt that followed it, would
find no charge and make a second one, at a provider that knows no keys. While the circuit breaker is open the
subscriptions pause. What is in hand stays in hand, as long as that may last; what is still in the bus waits there.
"""

from __future__ import annotations

__all__ = ["CONSUMER", "FRESH_SECONDS", "HEARS", "PaymentWorker", "result_id"]

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from attrs import define, field
from loguru import logger

from app.gateways.breaker_wait import BreakerWait
from app.gateways.circuit_breaker import BreakerOpen, BreakerState, CircuitBreaker
from app.gateways.delay_notifier import DelayNotifier, no_content
from app.gateways.gateway_calls import CALLS_MAX, LANE_CALLS_MAX, GatewayCalls, GatewayRequest
from app.gateways.port import Gateway
from app.messaging.cloudevents import occurred_at
from app.runtime.receiving import Receiver, extend_ack_deadlines
from app.runtime.runner import ModuleRunner
from app.storage.errors import TemporarilyUnavailable
from app.telemetry.message_metrics import MessageMetrics
from app.telemetry.metrics import Metrics
from app.telemetry.trace import TraceContext
from bus.contracts.event_reader import EventReader
from bus.contracts.registry import ContractRegistry
from bus.ids import derived_id
from bus.port import Clock, Delivery, Subscription
from bus.replay_subjects import original_subject
from bus.subjects import is_express
from modules.payments.events import (
    ChargeDeclined,
    ChargeFailed,
    ChargeMismatch,
    ChargeRequested,
    ChargeSucceeded,
    RefundFailed,
    RefundRequested,
    RefundSucceeded,
)
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

HEARTBEAT_SECONDS = 10.0
FETCH_SECONDS = 1.0


_RESULT_NAMES: dict[type, str] = {
    ChargeSucceeded: "Charged",
    ChargeDeclined: "ChargeRefused",
    ChargeFailed: "ChargeFailed",
    ChargeMismatch: "ChargeContradicted",
    RefundSucceeded: "Refunded",
    RefundFailed: "RefundFailed",
}
"""
What the id of a result is derived from, by the result's class. Never change these texts.

They are the names that the classes had when these ids were introduced. During an upgrade a worker of an older version
may have submitted the result of a request already; the inbox recognises the duplicate only if the ids are the same.
"""


class _ShuttingDown(Exception):
    """The house is closing: what waits for the breaker goes back to the outbox."""


@define(eq=False)
class _Lane:
    """What is in hand of one subscription: calls that are out, and answers that are being told."""

    calling: set[asyncio.Task[None]] = field(factory=set)
    in_hand: int = 0


class PaymentWorker:
    """Call the gateway for payments, up to `CALLS_MAX` times at once."""

    def __init__(
        self,
        runner: ModuleRunner,
        gateway: Gateway,
        breaker: CircuitBreaker,
        contracts: ContractRegistry,
        clock: Clock,
        metrics: Metrics,
        rng: random.Random | None = None,
    ) -> None:
        self._runner = runner
        self._gateway = gateway
        self._breaker = breaker
        self._clock = clock
        self._messages = MessageMetrics(runner.module.name, metrics)
        self._rng = rng or random.Random()
        self._receiver = Receiver(EventReader(CONSUMER, contracts, HEARS), self._messages, self._rng)
        self._ask = GatewayCalls(gateway, breaker, metrics, self._rng)
        self._started_at = self._well_since = clock.now()
        self._calls: dict[asyncio.Task[None], Delivery] = {}
        self._lanes: list[_Lane] = []
        self._last_at: dict[str, asyncio.Task[None]] = {}
        """Of each order that somebody is at, who came last."""
        self._has_room = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._is_leaving = False
        self._beat: asyncio.Task[None] | None = None
        self.delays = DelayNotifier(runner, CONSUMER, breaker, clock)
        self._breaker_wait = BreakerWait(breaker, clock)
        breaker.add_listener(self._breaker_changed)

    async def consume(self, subscription: Subscription) -> None:
        """Hear *subscription* until cancelled, no more at once than may call."""
        self._subscriptions.append(subscription)
        if self._beat is None:
            self._beat = asyncio.create_task(self._send_heartbeats())
        lane = _Lane()
        self._lanes.append(lane)
        while True:
            while (limit := self._room_in(lane)) <= 0:
                self._has_room.clear()
                await self._has_room.wait()
            if self._breaker.state is not BreakerState.CLOSED:
                await self._breaker_wait.until_permit()
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
        self._breaker_wait.shutdown()
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

    async def _send_heartbeats(self) -> None:
        """Tell the bus of what takes long that somebody is still at it."""
        while True:
            await self._clock.sleep(HEARTBEAT_SECONDS)
            await extend_ack_deadlines(list(self._calls.values()), CONSUMER)

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
        received = await self._receiver.receive(delivery)
        if received is None:
            return
        if received.may_be_deferred:
            await self._receiver.defer(delivery)
            return
        event, id, context = received.event, received.id, received.trace
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
            is_news = answer is not None and await self._submit(task, answer)
        except Exception as error:  # whatever it is, it is this message's trouble: five tries, then a dead letter
            await self._receiver.fail(delivery, error, context.correlation_id)
            return
        finally:
            if self._last_at.get(event.order_id) is me:
                del self._last_at[event.order_id]
        self._messages.count(received.subject, "handled" if is_news else "superseded" if received.is_older else "repeated")
        await delivery.ack()

    def _task(self, event: Any, delivery: Delivery, id: str, context: TraceContext, *, is_alone: bool) -> GatewayRequest:
        """Return what *delivery* asks for, now that it is its turn; *is_alone* if it need not wait for that."""
        asked_at = _moment(occurred_at(delivery.message))
        is_repeat = self._is_repeat(delivery, id, asked_at)
        is_first = is_alone and not is_repeat and event.attempt == 1 and getattr(event, "is_wanted", True)
        # Whatever is old, or waited while the breaker was open, may be about an order that is cancelled or paid by now.
        fresh_since = max(self._well_since, self._clock.now() - timedelta(seconds=FRESH_SECONDS))
        is_well = self._breaker.state is BreakerState.CLOSED
        is_late = not (is_first and is_well and asked_at is not None and asked_at >= fresh_since)
        return GatewayRequest(event, id, context, is_express(original_subject(delivery.message.subject)), is_first, is_late, is_repeat)

    async def _submit(self, task: GatewayRequest, answer: Any) -> bool:
        """Tell *answer*; return whether it is news. It is none for a copy of what was heard, and told, before."""
        told = await self._retry_until_available(
            lambda: self._runner.submit(
                answer, id=result_id(task.id, answer), trace=task.trace, respond=no_content, is_express=task.is_express, is_new=False
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

    async def _charge(self, task: GatewayRequest) -> Any:
        """
        Have the money taken, and wait for the breaker as long as it takes; return what to tell.

        Nothing (None) where our books know that the attempt brought its answer, and that another will follow.
        """
        event: ChargeRequested = task.event
        is_wanted, is_first = event.is_wanted, task.is_first
        is_late, is_held = task.is_late, False
        while True:
            if is_late:
                payment: Payment | None = await self._retry_until_available(lambda: self._runner.get(Payment, event.order_id))
                is_wanted = is_wanted and _should_charge(payment)
                if is_wanted and payment is not None and payment.attempts > event.attempt:
                    return None
                is_first = is_first and payment is not None and payment.calls == 0
            if is_first and not is_wanted:  # cancelled while it waited, and never sent
                return ChargeFailed(order_id=event.order_id, is_unknown=False, retry_seconds=0, calls=0)
            try:
                return await self._ask.charge(task, is_wanted=is_wanted, is_first=is_first)
            except BreakerOpen:
                if not is_held:
                    await self._retry_until_available(lambda: self.delays.notify(event.order_id, task.trace, task.is_express))
                try:
                    await self._wait_for_breaker()
                except _ShuttingDown:
                    wait_seconds = self._ask.retry_seconds(1)
                    return ChargeFailed(
                        order_id=event.order_id, is_unknown=task.is_repeat, retry_seconds=wait_seconds, calls=0
                    )
            is_held = is_late = True

    async def _refund(self, task: GatewayRequest) -> Any:
        """Have the money given back, and wait for the breaker as long as it takes; return what to tell."""
        while True:
            try:
                return await self._ask.refund(task)
            except BreakerOpen:
                try:
                    await self._wait_for_breaker()
                except _ShuttingDown:
                    wait_seconds = self._ask.retry_seconds(1)
                    return RefundFailed(order_id=task.event.order_id, retry_seconds=wait_seconds, calls=0)

    async def _wait_for_breaker(self) -> None:
        """
        Return when it is worth asking the breaker again.

        Raises:
            _Leaving: It is not worth waiting any more.
        """
        if not self._is_leaving:
            await self._breaker_wait.until_retry()
        if self._is_leaving:
            raise _ShuttingDown

    async def _retry_until_available(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until the database answers; the message stays ours meanwhile and spends no try."""
        while True:
            try:
                return await ask()
            except TemporarilyUnavailable as shed:
                await self._clock.sleep(shed.retry_after_seconds)


def result_id(request_id: str, result: Any) -> str:
    """
    Return the id of *result*, an event that the worker submits for the request *request_id*.

    The kind of result is part of it: a request that is processed twice, because the worker was killed in between, may
    have two different results, and payments needs both.
    """
    kind = f"{_RESULT_NAMES[type(result)]}.{getattr(result, 'is_unknown', False)}"
    return derived_id(request_id, f"{CONSUMER}.{kind}")


def _should_charge(payment: Payment | None) -> bool:
    """Tell whether its money is still to be taken: the order may have been cancelled while the request waited."""
    return (
        payment is not None
        and payment.status in (PaymentStatus.PENDING, PaymentStatus.UNKNOWN)
        and not (payment.is_cancelled or payment.needs_review)
    )


def _moment(text: str | None) -> datetime | None:
    with suppress(ValueError, TypeError):
        moment = datetime.fromisoformat(text or "")
        return moment if moment.tzinfo is not None else None
    return None
