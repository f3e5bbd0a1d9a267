"""
The worker at the payment gateway: hears what is to be asked, asks, and tells the answer through the door.

It never holds a transaction, and a provider in trouble costs no message a try: an attempt that brought no answer is an
answer too, and the module puts the next attempt into its outbox. Calls go out under a key that belongs to the order.
"""

from __future__ import annotations

__all__ = ["CONSUMER", "HEARS", "GatewayWorker"]

import asyncio
import random
from collections.abc import Callable
from typing import Any

from loguru import logger

from app.door import Context, Shed
from app.gateways.breaker import Breaker, BreakerOpen
from app.gateways.port import Captured, Gateway, GatewaySilent, GatewayTrouble, Refused
from app.headers import origin, said_in
from app.shell import GIVE_WAY_MAX, GIVE_WAY_SECONDS, Shell, retry_seconds
from app.telemetry.metrics import Metrics
from bus.contracts import Contracts, is_express
from bus.errors import PutAside
from bus.hearing import Hearing
from bus.ids import caused_id
from bus.port import Clock, Delivery, Subscription
from bus.replays import original
from modules.module import Outcome
from modules.payments.events import (
    Charged,
    ChargeFailed,
    ChargeRefused,
    ChargeRequested,
    Refunded,
    RefundFailed,
    RefundRequested,
)
from modules.route import Answer

CONSUMER = "payments-gateway"
HEARS: tuple[type, ...] = (ChargeRequested, RefundRequested)

CALLS_MAX = 100
CALL_SECONDS_MAX = 20.0
RETRY_SECONDS_MAX = 5.0
FETCH_SECONDS = 1.0


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
        self._attempts = metrics.payment_attempts
        self._handled = metrics.messages_handled
        self._dice = dice or random.Random()
        self._calls: set[asyncio.Task[None]] = set()
        self._has_room = asyncio.Event()

    async def listen(self, subscription: Subscription) -> None:
        """Hear *subscription* until cancelled, no more at once than may call."""
        while True:
            while len(self._calls) >= CALLS_MAX:
                self._has_room.clear()
                await self._has_room.wait()
            for delivery in await subscription.fetch(CALLS_MAX - len(self._calls), FETCH_SECONDS):
                call = asyncio.create_task(self._handle(delivery))
                self._calls.add(call)
                call.add_done_callback(self._done)

    async def drain(self, seconds: float) -> None:
        """Let the calls that are out come back, for up to *seconds*; what has not by then comes again."""
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=seconds)
            for call in late:
                call.cancel()

    def _done(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._has_room.set()
        if not call.cancelled() and (error := call.exception()) is not None:
            logger.opt(exception=error).error("the gateway worker failed")

    async def _handle(self, delivery: Delivery) -> None:
        message = delivery.message
        subject = original(message.subject)
        versions = said_in(message)
        try:
            event = self._hears.read(subject, message.body)
        except PutAside as error:
            if versions is not None and self._hears.is_said_otherwise(subject, versions):
                await delivery.ack()
            else:
                await delivery.term(error.code, str(error))
            return
        if (
            versions is not None
            and delivery.tries <= GIVE_WAY_MAX
            and self._hears.is_superseded(subject, versions)
        ):
            await delivery.nak(GIVE_WAY_SECONDS, error="superseded")
            return
        id, context = origin(message)
        try:
            answer = await (self._charge(event) if isinstance(event, ChargeRequested) else self._refund(event))
            # Asked twice (we were killed in between), the gateway may answer in two ways, and both are news.
            kind = f"{type(answer).__name__}.{getattr(answer, 'is_unknown', False)}"
            answer_id = caused_id(id, f"{CONSUMER}.{kind}")
            await self._tell(answer, answer_id, context, is_express(subject), delivery)
        except Exception as error:  # whatever it is, it is this message's trouble: five tries, then a dead letter
            detail = f"{type(error).__name__}: {error}"
            logger.warning("message failed", consumer=CONSUMER, detail=detail, correlation_id=context.correlation_id)
            await delivery.nak(retry_seconds(delivery.tries, self._dice), detail=detail)
            self._handled.labels("payments", subject, "failed").inc()
            return
        self._handled.labels("payments", subject, "handled").inc()
        await delivery.ack()

    async def _charge(self, event: ChargeRequested) -> Any:
        key = f"charge:{event.order_id}"
        calls = 0
        try:
            if event.attempt > 1 or not event.is_wanted:
                found = await self._call(lambda: self._gateway.find(key, event.order_id))
                if found is None and not event.is_wanted:
                    found = Refused("order_cancelled")
            else:
                found = None
            if found is None:
                calls = 1
                found = await self._call(
                    lambda: self._gateway.charge(key, event.order_id, event.amount, event.payment_method)
                )
        except BreakerOpen as closed:
            self._attempts.labels("unavailable").inc()
            return ChargeFailed(
                order_id=event.order_id,
                is_unknown=False,
                retry_seconds=self._spread(closed.retry_after_seconds),
                calls=0,
            )
        except GatewayTrouble as trouble:
            is_unknown = isinstance(trouble, GatewaySilent) and calls == 1
            self._attempts.labels("unknown" if is_unknown else "unavailable").inc()
            return ChargeFailed(
                order_id=event.order_id,
                is_unknown=is_unknown,
                retry_seconds=self._retry_seconds(event.attempt, trouble.retry_after_seconds),
                calls=calls,
            )
        if isinstance(found, Captured):
            self._attempts.labels("captured").inc()
            return Charged(order_id=event.order_id, reference=found.reference, calls=calls)
        self._attempts.labels("declined").inc()
        return ChargeRefused(order_id=event.order_id, reason=found.reason[:64], calls=calls)

    async def _refund(self, event: RefundRequested) -> Any:
        try:
            reference = await self._call(
                lambda: self._gateway.refund(f"refund:{event.order_id}", event.reference, event.amount)
            )
        except BreakerOpen as closed:
            return RefundFailed(order_id=event.order_id, retry_seconds=self._spread(closed.retry_after_seconds))
        except GatewayTrouble as trouble:
            self._attempts.labels("refund_failed").inc()
            retry_seconds = self._retry_seconds(event.attempt, trouble.retry_after_seconds)
            return RefundFailed(order_id=event.order_id, retry_seconds=retry_seconds)
        self._attempts.labels("refunded").inc()
        return Refunded(order_id=event.order_id, reference=reference)

    async def _call(self, call: Callable[[], Any]) -> Any:
        """Make one call if the breaker lets us, and let it know how that went."""
        leave = self._breaker.enter()
        try:
            async with asyncio.timeout(CALL_SECONDS_MAX):
                answer = await call()
        except GatewayTrouble as trouble:
            self._breaker.failed(leave, trouble.retry_after_seconds)
            raise
        except TimeoutError:
            self._breaker.failed(leave)
            raise GatewaySilent(f"no answer within {CALL_SECONDS_MAX:g} s") from None
        except BaseException:  # cancelled, or a bug of ours: neither says anything about the provider
            self._breaker.cancelled(leave)
            raise
        self._breaker.succeeded(leave)
        return answer

    async def _tell(self, answer: Any, id: str, context: Context, express: bool, delivery: Delivery) -> None:
        """Tell *answer* until the database takes it; the message stays ours meanwhile and spends no try."""
        while True:
            try:
                await self._shell.tell(answer, id=id, context=context, answer=_noted, express=express, is_new=False)
                return
            except Shed as shed:
                await delivery.in_progress()
                await self._clock.sleep(shed.retry_after_seconds)

    def _retry_seconds(self, attempt: int, asked_seconds: float | None) -> float:
        """Return how long to wait: what was asked for at least, doubling up to `RETRY_SECONDS_MAX` by ourselves."""
        own_seconds = min(0.5 * 2.0 ** min(attempt - 1, 10), RETRY_SECONDS_MAX)
        return self._spread(max(asked_seconds or 0.0, own_seconds))

    def _spread(self, seconds: float) -> float:
        """Return *seconds* or somewhat more, so that not everybody who waits comes back at once."""
        return seconds * self._dice.uniform(1.0, 1.5)


def _noted(outcome: Outcome) -> Answer:
    return Answer(200, None)
