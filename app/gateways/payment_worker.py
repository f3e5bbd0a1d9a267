"""
The worker at the payment gateway: it consumes charge and refund requests, calls the provider, and submits the results.

- It holds no transaction while it calls the provider.
- A provider failure spends no delivery attempt: a call without a usable response has a result, too (`ChargeFailed`, `RefundFailed`),
  and payments schedules the next attempt in its outbox.
- Requests for one order are processed one at a time. Otherwise a late duplicate, processed beside the attempt that followed it,
  could find no charge and make a second one, at a provider that ignores idempotency keys.
- Each operation (charge, refund, look-up) has a circuit breaker of its own. Charges whose breaker is open are kept in hand,
  up to `HELD_MAX` of each lane; then the subscription is paused. A refund whose breaker is open waits in the outbox.
- A request that this process has committed is taken without the bus where nothing else can have it in hand (`take`). It
  goes over the bus if it has to wait for long. What the bus delivers may have been taken before, so it is rechecked.
"""

from __future__ import annotations

__all__ = ["CONSUMER", "FRESH_SECONDS", "PaymentWorker"]

import asyncio
import random
from collections.abc import Coroutine
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from loguru import logger

from app.gateways.breakers.breaker_wait import BreakerWait
from app.gateways.breakers.circuit_breaker import BreakerOpen, BreakerState
from app.gateways.breakers.operations import Operations
from app.gateways.delay_notifier import DelayNotifier
from app.gateways.gateway_calls import CALLS_MAX, make_calls
from app.gateways.gateway_request import (
    FRESH_SECONDS,
    ChargeAttempt,
    GatewayRequest,
    may_be_repeat,
    parse_time,
    result_id,
)
from app.gateways.lane import HELD_MAX, Lane
from app.gateways.order_locks import OrderLocks
from app.gateways.port import Gateway
from app.runtime.outage import retry_until_available
from app.runtime.receiving import EventReader, Received, Receiver, extend_ack_deadlines, fetch_seconds
from app.runtime.runner import ModuleRunner
from app.runtime.work import OutgoingEvent
from app.telemetry.message_metrics import MessageMetrics
from app.telemetry.metrics import Metrics
from app.telemetry.trace import TraceContext
from bus.contracts.registry import ContractRegistry
from bus.port import Clock, Delivery, Subscription
from modules.payments.events import ChargeRequested
from modules.payments.state import Payment

T = TypeVar("T")

CONSUMER = "payments-gateway"

HEARTBEAT_SECONDS = 10.0


class PaymentWorker:
    """Call the provider for payments, with up to `CALLS_MAX` calls in flight."""

    def __init__(
        self,
        runner: ModuleRunner,
        gateway: Gateway,
        operations: Operations,
        contracts: ContractRegistry,
        clock: Clock,
        metrics: Metrics,
        rng: random.Random | None = None,
        *,
        takes_directly: bool = False,
    ) -> None:
        """Prepare to call *gateway*; *takes_directly* is true if `take` may be called."""
        rng = rng or random.Random()
        self._runner = runner
        self._gateway = gateway
        self._charges, breaker = operations.charge, operations.charge.breaker
        self._clock = clock
        self._messages = MessageMetrics(runner.module.name, metrics)
        self._receiver = Receiver(EventReader(CONSUMER, contracts, runner.module.workers[CONSUMER]), self._messages, rng)
        self._calls = make_calls(CONSUMER, gateway, operations, metrics, rng)
        self._order_locks = OrderLocks()
        self._known_since = self._closed_since = clock.now()
        self._in_hand: dict[asyncio.Task[Any], Delivery | None] = {}
        """The tasks of the requests in hand, each with its delivery; None if the request did not come over the bus."""
        self._lanes = {is_express: Lane(is_behind=not takes_directly) for is_express in (False, True)}
        self._takes_directly = takes_directly
        self._failed: set[str] = set()
        """Ids of requests that failed without the bus, which delivers them now."""
        self._slot_freed = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._heartbeat: asyncio.Task[None] | None = None
        self._is_draining = False
        self.delays = DelayNotifier(runner, CONSUMER, breaker, clock)
        self._breaker_wait = BreakerWait(breaker, clock)
        breaker.add_listener(self._on_breaker_change)

    async def consume(self, subscription: Subscription, is_express: bool = False) -> None:
        """Process *subscription*, one lane, until cancelled; fetch no more than there are free slots."""
        # An earlier process may have taken what payments has requested before, even if the clock was set back since.
        if (decided_at := await retry_until_available(self._clock, self._runner.states.last_decided_at)) is not None:
            self._known_since = max(self._known_since, decided_at + timedelta(microseconds=1))
        self._subscriptions.append(subscription)
        if self._heartbeat is None:
            self._heartbeat = asyncio.create_task(self._send_heartbeats())
        lane = self._lanes[is_express]
        while True:
            limit = await self._wait_for_slots(lane)
            if self._charges.breaker.state is not BreakerState.CLOSED:
                limit = min(limit, HELD_MAX - lane.held)
                if limit <= 0:
                    subscription.pause()
                    await self._breaker_wait.until_permit()
                    limit = self._charges.breaker.probes
            if subscription.is_paused:
                subscription.resume()
            if not lane.is_behind:
                limit = 1
            deliveries = await subscription.fetch(limit, fetch_seconds(self._clock), self._runner.is_standby)
            lane.is_behind = len(deliveries) == limit or not self._takes_directly
            for delivery in deliveries:
                _ = self._start(self._handle(delivery, lane), lane, delivery)

    def take(self, event: OutgoingEvent) -> asyncio.Future[bool] | None:
        """
        Process a request that this process has just committed, without the bus (an `app.runtime.work.TakeEvent`).

        The request waits here for a free call. The bus carries it if many wait, or for long, if older ones wait in the bus, or
        if the breaker is not closed.
        """
        lane = self._lanes[event.is_express]
        is_closed = self._charges.breaker.state is BreakerState.CLOSED
        if lane.is_behind or self._is_draining or not is_closed or lane.is_full:
            lane.is_behind = True
            return None
        if lane.waiting or self._free_slots(lane) <= 1:
            return lane.wait(event, self._clock.monotonic())
        return self._start_taken(lane, event)

    async def drain(self, seconds: float) -> None:
        """Wait up to *seconds* for the calls in flight; cancel the others, whose messages the bus delivers again."""
        self._is_draining = True
        self._breaker_wait.shutdown()
        for lane in self._lanes.values():
            lane.leave_to_bus()
        if self._in_hand:
            _, late = await asyncio.wait(self._in_hand, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def close(self) -> None:
        """Stop the heartbeat and close the gateway's connections. Idempotent."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.gather(self._heartbeat, return_exceptions=True)
        await self.delays.close()
        await self._gateway.close()

    # Slots: how much is in hand

    async def _wait_for_slots(self, lane: Lane) -> int:
        """Return how many more requests *lane* may take, once it is at least one."""
        while (free := self._free_slots(lane)) <= 0:
            self._slot_freed.clear()
            await self._slot_freed.wait()
        return free

    def _free_slots(self, lane: Lane) -> int:
        return min(CALLS_MAX - sum([len(each.calling) for each in self._lanes.values()]), lane.free_slots)

    def _start(self, work: Coroutine[Any, Any, T], lane: Lane, delivery: Delivery | None) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._in_hand[task] = delivery
        lane.calling.add(task)
        lane.in_hand += 1
        task.add_done_callback(partial(self._on_done, lane))
        return task

    def _start_taken(self, lane: Lane, event: OutgoingEvent) -> asyncio.Task[bool]:
        return self._start(self._handle_taken(event, lane), lane, None)

    def _on_done(self, lane: Lane, task: asyncio.Task[Any]) -> None:
        self._in_hand.pop(task, None)
        lane.in_hand -= 1
        self._free_call_slot(lane, task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.opt(exception=error).error("the payment worker could not settle a message")

    def _free_call_slot(self, lane: Lane, task: asyncio.Task[Any]) -> None:
        lane.calling.discard(task)
        self._slot_freed.set()
        for each in reversed(self._lanes.values()):  # the express lane first
            while each.waiting and self._free_slots(each) > 1:
                each.start_next(partial(self._start_taken, each), self._clock.monotonic())

    async def _send_heartbeats(self) -> None:
        """Extend the ack deadlines of all messages in hand, until cancelled."""
        while True:
            await self._clock.sleep(HEARTBEAT_SECONDS)
            await extend_ack_deadlines([each for each in self._in_hand.values() if each is not None], CONSUMER)

    def _on_breaker_change(self, state: BreakerState) -> None:
        if state is BreakerState.CLOSED:
            for subscription in self._subscriptions:
                subscription.resume()
            self._closed_since = self._clock.now()

    # One message

    async def _handle(self, delivery: Delivery, lane: Lane) -> None:
        """Decode and process one message, and settle it."""
        received = await self._receiver.receive(delivery)
        if received is None:
            return
        if received.may_be_deferred:
            return await self._receiver.defer(delivery)
        try:
            await self._process(received, lane)
        except Exception as error:  # any error is this message's alone: the bus delivers it again, up to its last try
            return await self._receiver.fail(delivery, error, received.trace.correlation_id)
        self._failed.discard(received.id)
        await delivery.ack()

    async def _handle_taken(self, event: OutgoingEvent, lane: Lane) -> bool:
        """Process a request that did not come over the bus; return False if the bus has to deliver it after all."""
        (row,) = event.messages
        trace = TraceContext(row.correlation_id, row.traceparent)
        received = Received(None, event.event, row.event_id, trace, row.subject, row.occurred_at, None, is_older=False)
        try:
            await self._process(received, lane)
        except BreakerOpen:  # no call was made
            lane.is_behind = True
            return False
        except Exception as error:  # any error is this request's alone
            self._failed.add(received.id)
            logger.warning("a request failed; the bus delivers it", event_id=received.id, detail=repr(error))
            return False
        return True

    async def _process(self, received: Received, lane: Lane) -> None:
        """Call the provider for one request and submit the result, after all earlier requests for the same order."""
        task = asyncio.current_task()
        assert task is not None
        async with self._order_locks.turn(received.event.order_id) as is_uncontended:
            request = self._request(received, is_uncontended=is_uncontended)
            result = await self._call_provider(request, lane, task, is_taken=received.delivery is None)
            # Storing the result needs no call to the provider, however long it waits for the database.
            self._free_call_slot(lane, task)
            is_new = result is not None and await self._submit(request, result)
        self._messages.count(received.subject, "handled" if is_new else "superseded" if received.is_older else "repeated")

    def _request(self, received: Received, *, is_uncontended: bool) -> GatewayRequest:
        """Return the request that *received* holds; *is_uncontended* if no other request for the order was in hand."""
        event, requested_at = received.event, parse_time(received.occurred_at)
        is_repeat = received.id in self._failed or may_be_repeat(received, requested_at, self._known_since)
        is_first_call = is_uncontended and not is_repeat and event.attempt == 1 and getattr(event, "is_wanted", True)
        # The order of a request that is old, or that waited while the breaker was open, may be cancelled or paid by now.
        fresh_since = max(self._closed_since, self._clock.now() - timedelta(seconds=FRESH_SECONDS))
        is_closed = self._charges.breaker.state is BreakerState.CLOSED
        is_fresh = is_closed and requested_at is not None and requested_at >= fresh_since
        # Outbox rows may be published again (`app.messaging.republish`); a broker knows no duplicate of what it never had.
        is_fresh = is_fresh and (received.delivery is None or not self._takes_directly)
        return GatewayRequest(
            event=event,
            id=received.id,
            trace=received.trace,
            is_express=received.is_express,
            is_first_call=is_first_call,
            needs_recheck=not (is_first_call and is_fresh),
            may_be_repeat=is_repeat,
        )

    async def _submit(self, request: GatewayRequest, result: Any) -> bool:
        """Submit *result* to payments; return False if it had been submitted before, for an earlier delivery."""
        id = result_id(request.id, CONSUMER, result)
        submit = partial(self._runner.submit, result, id=id, trace=request.trace, is_express=request.is_express, is_new=False)
        return not (await retry_until_available(self._clock, submit)).is_replay

    async def _call_provider(self, request: GatewayRequest, lane: Lane, task: asyncio.Task[Any], *, is_taken: bool) -> Any:
        """
        Charge or refund, and return the result as an event. A charge waits while its breaker is open, however long.

        The result is None if payments has the result of this request already, and a later request follows.

        Raises:
            BreakerOpen: The charge *is_taken* without the bus, and is to wait there.
        """
        attempt = ChargeAttempt(request) if isinstance(request.event, ChargeRequested) else None
        while True:
            try:
                return await (self._refund(request) if attempt is None else self._charge(attempt))
            except BreakerOpen as error:
                if attempt is None:  # a refund waits in the outbox, so that it takes no place of a charge
                    return request.not_sent(self._calls.refund_retry_seconds(request.event.attempt, error.retry_after_seconds))
                if is_taken:
                    raise
                await self._delay(attempt)
                if not await self._wait_in_hand(lane, task):
                    return request.not_sent(self._calls.retry_seconds(1))

    async def _wait_in_hand(self, lane: Lane, task: asyncio.Task[Any]) -> bool:
        """Wait for the breaker without a call slot; return False after `drain`."""
        lane.held += 1
        self._free_call_slot(lane, task)
        try:
            return await self._breaker_wait.until_retry()
        finally:
            lane.held -= 1
            lane.calling.add(task)

    async def _refund(self, request: GatewayRequest) -> Any:
        """Refund, and return the result; None for a late duplicate: a key that ended without a refund may be free for one."""
        is_ended = request.needs_recheck and request.has_ended(await self._stored(request.event.order_id))
        return None if is_ended else await self._calls.refund(request)

    async def _stored(self, order_id: str) -> Any:
        return await retry_until_available(self._clock, lambda: self._runner.get(Payment, order_id))

    async def _charge(self, attempt: ChargeAttempt) -> Any:
        """
        Make one attempt to charge when its turn has come, after a recheck of the payment if necessary; return the result or None.

        Raises:
            BreakerOpen: The circuit breaker permits no call now.
        """
        if attempt.should_charge and (wait_seconds := self._charges.pace.reserve()) > 0:
            await self._clock.sleep(wait_seconds)
            attempt.needs_recheck = True  # the order may have been cancelled meanwhile
        if attempt.needs_recheck:
            await self._recheck(attempt)
        if attempt.is_answered:
            return None
        return attempt.request.not_sent(0) if attempt.is_withdrawn else await self._calls.charge(attempt, self._recheck)

    async def _recheck(self, attempt: ChargeAttempt) -> None:
        attempt.recheck(await self._stored(attempt.event.order_id))

    async def _delay(self, attempt: ChargeAttempt) -> None:
        """Report the delay once, and have the attempt rechecked after the wait."""
        if not attempt.is_delay_reported:
            order_id, request = attempt.event.order_id, attempt.request
            await retry_until_available(self._clock, lambda: self.delays.notify(order_id, request.trace, request.is_express))
        attempt.is_delay_reported = attempt.needs_recheck = True
