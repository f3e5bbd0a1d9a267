"""What is asked of the gateway: one call, through the breaker and within its time, and what its answer means."""

from __future__ import annotations

__all__ = ["CALLS_MAX", "CALL_SECONDS_MAX", "LANE_CALLS_MAX", "LOOKUP_SECONDS_MAX", "RETRY_SECONDS_MAX", "GatewayCalls", "GatewayRequest"]

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from attrs import define
from loguru import logger

from app.gateways.circuit_breaker import CircuitBreaker
from app.gateways.port import (
    Captured,
    Gateway,
    GatewayError,
    GatewayRejected,
    GatewayTimeout,
    Pending,
    ResponseMismatch,
)
from app.telemetry.metrics import Metrics
from app.telemetry.trace import TraceContext
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

T = TypeVar("T")

CALLS_MAX = 100
LANE_CALLS_MAX = 80
"""How many of them one lane may have out, so that the other never finds all taken."""

CALL_SECONDS_MAX = 20.0
LOOKUP_SECONDS_MAX = 120.0
"""How long a look may take: the provider's list may be long."""

RETRY_SECONDS_MAX = 5.0
DECLINED_SECONDS_MAX = 300.0
"""How long to wait before a refund is asked for again that the provider refuses: a person has to do something first."""


@define  # not frozen, for each message makes one
class GatewayRequest:
    """
    A request in hand.

    *is_first* if nobody has heard of it before; *is_late* if it waited so long that our own books may know more.
    *is_repeat* if somebody who heard it may have called, and been killed before he could say so: as long as no look has
    come back, nobody knows.
    """

    event: Any
    id: str
    trace: TraceContext
    is_express: bool
    is_first: bool
    is_late: bool
    is_repeat: bool


class GatewayCalls:
    """Ask the gateway; whatever it answers becomes an event to be told."""

    def __init__(self, gateway: Gateway, breaker: CircuitBreaker, metrics: Metrics, rng: random.Random) -> None:
        self._gateway = gateway
        self._breaker = breaker
        self._attempts = metrics.payment_attempts
        self._rng = rng

    async def charge(self, task: GatewayRequest, *, is_wanted: bool, is_first: bool) -> Any:
        """
        Look where somebody may have called before, and have the money taken; return what to tell.

        Raises:
            BreakerOpen: Not now.
        """
        event: ChargeRequested = task.event
        order_id, amount, key = event.order_id, event.amount, f"charge:{event.order_id}"
        calls = 0
        try:
            found = None
            if not is_wanted:
                look = self._gateway.cancel
                found = await self._call(lambda: look(key, order_id, amount), LOOKUP_SECONDS_MAX)
                if found is None:
                    return ChargeDeclined(order_id=order_id, reason="order_cancelled", calls=0)
            elif not is_first:
                found = await self._call(lambda: self._gateway.find(key, order_id, amount), LOOKUP_SECONDS_MAX)
            if found is None:
                calls = 1
                charge = self._gateway.charge
                found = await self._call(lambda: charge(key, order_id, amount, event.payment_method), CALL_SECONDS_MAX)
        except GatewayError as trouble:
            is_unknown = isinstance(trouble, GatewayTimeout) if calls else task.is_repeat
            self._note("unknown" if is_unknown else "unavailable", task, trouble)
            wait_seconds = self.retry_seconds(event.attempt, trouble.retry_after_seconds)
            return ChargeFailed(order_id=order_id, is_unknown=is_unknown, retry_seconds=wait_seconds, calls=calls)
        except ResponseMismatch as wrong:
            self._note("put_aside", task, wrong)
            return ChargeMismatch(order_id=order_id, reason=wrong.reason, reference=wrong.reference, calls=calls)
        if isinstance(found, Captured):
            self._attempts.labels("captured").inc()
            return ChargeSucceeded(order_id=order_id, reference=found.reference, calls=calls)
        if isinstance(found, Pending):
            self._attempts.labels("unknown").inc()
            wait_seconds = self.retry_seconds(event.attempt)
            return ChargeFailed(order_id=order_id, is_unknown=True, retry_seconds=wait_seconds, calls=calls)
        self._attempts.labels("declined").inc()
        return ChargeDeclined(order_id=order_id, reason=found.reason[:64], calls=calls)

    async def refund(self, task: GatewayRequest) -> Any:
        """
        Have the money given back; return what to tell.

        Raises:
            BreakerOpen: Not now.
        """
        event: RefundRequested = task.event
        order_id, key, refund = event.order_id, f"refund:{event.order_id}", self._gateway.refund
        try:
            reference = await self._call(lambda: refund(key, order_id, event.reference, event.amount), LOOKUP_SECONDS_MAX)
        except GatewayError as trouble:
            self._note("refund_failed", task, trouble)
            wait_seconds = self.retry_seconds(event.attempt, trouble.retry_after_seconds)
            return RefundFailed(order_id=order_id, retry_seconds=wait_seconds)
        except (GatewayRejected, ResponseMismatch) as refusal:
            self._note("refund_failed", task, refusal)
            reason = refusal.reason if isinstance(refusal, ResponseMismatch) else f"refund_refused: {refusal}"
            wait_seconds = self._spread(min(2.0 ** min(event.attempt, 10), DECLINED_SECONDS_MAX))
            return RefundFailed(order_id=order_id, retry_seconds=wait_seconds, reason=reason[:64])
        self._attempts.labels("refunded").inc()
        return RefundSucceeded(order_id=order_id, reference=reference)

    async def _call(self, call: Callable[[], Awaitable[T]], seconds_max: float) -> T:
        """Make one call if the breaker lets us, and let it know how that went."""
        leave = self._breaker.acquire()
        try:
            async with asyncio.timeout(seconds_max):
                answer = await call()
        except GatewayError as trouble:
            self._breaker.failed(leave, trouble.retry_after_seconds)
            raise
        except (GatewayRejected, ResponseMismatch):  # an answer, of a kind: the line is well
            self._breaker.succeeded(leave)
            raise
        except TimeoutError:
            self._breaker.failed(leave)
            raise GatewayTimeout(f"no answer within {seconds_max:g} s") from None
        except BaseException:  # cancelled, or a bug of ours: neither says anything about the provider
            self._breaker.cancelled(leave)
            raise
        self._breaker.succeeded(leave)
        return answer

    def _note(self, outcome: str, task: GatewayRequest, trouble: Exception) -> None:
        self._attempts.labels(outcome).inc()
        is_grave = isinstance(trouble, ResponseMismatch | GatewayRejected)
        logger.log(
            "ERROR" if is_grave else "DEBUG", "gateway trouble", gateway=self._gateway.name, outcome=outcome,
            order_id=task.event.order_id, detail=str(trouble), reason=getattr(trouble, "reason", None),
            correlation_id=task.trace.correlation_id,
        )  # fmt: skip

    def retry_seconds(self, attempt: int, asked_seconds: float | None = None) -> float:
        """Return how long to wait: what was asked for at least, doubling up to `RETRY_SECONDS_MAX` by ourselves."""
        own_seconds = min(0.5 * 2.0 ** min(attempt - 1, 10), RETRY_SECONDS_MAX)
        return self._spread(max(asked_seconds or 0.0, own_seconds))

    def _spread(self, seconds: float) -> float:
        """Return *seconds* or somewhat more, so that not everybody who waits comes back at once."""
        return seconds * self._rng.uniform(1.0, 1.5)
