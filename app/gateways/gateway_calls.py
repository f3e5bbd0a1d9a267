"""Calls to the payment provider, through the circuit breaker and within a time limit, and what their responses mean."""

from __future__ import annotations

__all__ = [
    "CALLS_MAX",
    "CALL_SECONDS_MAX",
    "LANE_CALLS_MAX",
    "LOOKUP_SECONDS_MAX",
    "REFUND_RETRY_SECONDS_MAX",
    "RETRY_SECONDS_MAX",
    "GatewayCalls",
    "ends_key",
    "make_calls",
    "numbered_key",
]

import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from loguru import logger

from app.gateways.breakers.circuit_breaker import BreakerOpen
from app.gateways.breakers.operations import Operations
from app.gateways.gateway_request import ChargeAttempt, GatewayRequest
from app.gateways.port import (
    Captured,
    ChargeDetails,
    ChargeResult,
    Declined,
    Gateway,
    GatewayError,
    GatewayMisconfigured,
    GatewayNotReached,
    GatewayTimeout,
    Pending,
    RefundPending,
    RefundRejected,
    ResponseMismatch,
)
from app.telemetry.metrics import Metrics
from bus.subjects import subject_of
from modules.payments.events import (
    ChargeDeclined,
    ChargeFailed,
    ChargeMismatch,
    ChargeSucceeded,
    RefundFailed,
    RefundProcessing,
    RefundRequested,
    RefundSucceeded,
)

if TYPE_CHECKING:
    from app.telemetry.otel.tracer import Tracer

Recheck = Callable[[ChargeAttempt], Awaitable[None]]
"""Updates an attempt from the stored payment."""

CALLS_MAX = 100
"""How many calls to the provider may be in flight."""

LANE_CALLS_MAX = 80
"""How many of them one lane may use, so that the other lane always finds a free one."""

CALL_SECONDS_MAX = 20.0
LOOKUP_SECONDS_MAX = 120.0
"""How long a look-up may take: the provider's list may be long."""

RETRY_SECONDS_MAX = 5.0
REFUND_RETRY_SECONDS_MAX = 300.0
"""The longest wait before a refund of unknown outcome is requested again: no order waits for it."""

REASON_MAX = 64
"""The length of the database column for reasons."""


def numbered_key(operation: str, order_id: str, number: int) -> str:
    """Return the idempotency key of *operation* (``charge``, ``refund``) for an order; the first one has no number."""
    return f"{operation}:{order_id}" if number == 1 else f"{operation}:{order_id}:{number}"


def ends_key(error: GatewayError) -> bool:
    """Return whether the provider may repeat *error* under the same key for as long as it remembers the key."""
    if isinstance(error, GatewayMisconfigured):
        return error.ends_key
    return isinstance(error, GatewayTimeout) and error.has_ended


class GatewayCalls:
    """Call the provider, and convert its response to the event that the worker submits to payments."""

    def __init__(self, gateway: Gateway, operations: Operations, metrics: Metrics, rng: random.Random) -> None:
        self._gateway = gateway
        self._operations = operations
        self._attempts = metrics.payment_attempts
        self._rng = rng

    async def charge(self, attempt: ChargeAttempt, recheck: Recheck) -> Any:
        """
        Look the charge up if an earlier call is possible, make it if there is none, and return the result as an event.

        The caller has waited for the pace of charges, and compared *attempt* with its payment after that. A look-up may take long,
        so *recheck* is called after one and before a charge. The result is None if payments has the result of this request already.

        Raises:
            BreakerOpen: The circuit breaker permits no call now.
        """
        event, request, calls, is_repeat = attempt.event, attempt.request, 0, False
        order_id, amount, key = event.order_id, event.amount, numbered_key("charge", event.order_id, event.key_number)
        try:
            charge = None
            if attempt.may_exist:
                if attempt.should_charge:  # a look-up would be in vain while the charge cannot follow
                    self._operations.charge.breaker.check()
                is_repeat = await self._repeats_safely(attempt)
                charge = None if is_repeat else await self._existing_charge(attempt, key)
                if attempt.should_charge and not is_repeat and _permits_a_charge(charge):
                    await recheck(attempt)
                    if attempt.is_answered:
                        return None
            if charge is None and not attempt.should_charge:
                return ChargeDeclined(order_id=order_id, reason="order_cancelled", calls=0)
            if charge is None or (attempt.should_charge and _permits_a_charge(charge)):
                calls = 1
                details = ChargeDetails(event.payment_method, event.payment_customer, event.shipping_address)
                call = partial(self._gateway.charge, key, order_id, amount, details)
                charge = await self._operations.charge.call(call, CALL_SECONDS_MAX, has_waited=True)
        except GatewayError as error:
            is_unknown = is_repeat or isinstance(error, GatewayTimeout) if calls else request.may_be_repeat
            self._record_failure("unknown" if is_unknown else "unavailable", request, error)
            return ChargeFailed(
                order_id=order_id,
                is_unknown=is_unknown,
                retry_seconds=self.retry_seconds(event.attempt, error.retry_after_seconds),
                calls=calls,
                key_number=event.key_number + (calls and ends_key(error)),
            )
        except ResponseMismatch as mismatch:
            self._record_failure("put_aside", request, mismatch)
            return ChargeMismatch(order_id=order_id, reason=mismatch.reason, reference=mismatch.reference, calls=calls)
        return self._charge_event(attempt, charge, calls)

    async def _repeats_safely(self, attempt: ChargeAttempt) -> bool:
        """
        Return whether the charge is requested again without a look-up.

        Only under the first key: a later one does not find the charges that were requested under those before it.
        """
        if not attempt.should_charge or attempt.event.key_number != 1:
            return False
        try:
            return await self._gateway.repeats_safely(attempt.event.order_id)
        except GatewayError:
            return False  # the look-up that follows shows what is wrong

    async def _existing_charge(self, attempt: ChargeAttempt, key: str) -> ChargeResult | None:
        """Return the charge that an earlier call has made; None if there is none."""
        event = attempt.event
        look_up = self._gateway.find if attempt.should_charge else self._gateway.cancel
        call = partial(look_up, key, event.order_id, event.amount)
        try:
            return await self._operations.look_up.call(call, LOOKUP_SECONDS_MAX)
        except BreakerOpen as error:  # charges that need no look-up continue, so this one must not wait in their place
            raise GatewayNotReached("look-ups are suspended", error.retry_after_seconds) from None

    def _charge_event(self, attempt: ChargeAttempt, charge: ChargeResult, calls: int) -> Any:
        order_id = attempt.event.order_id
        if isinstance(charge, Captured):
            self._attempts.labels("captured").inc()
            return ChargeSucceeded(
                order_id=order_id, reference=charge.reference, calls=calls, refunded_total=charge.refunded_total
            )
        if isinstance(charge, Pending):
            self._attempts.labels("unknown").inc()
            wait_seconds = self.retry_seconds(attempt.event.attempt)
            number = attempt.event.key_number
            return ChargeFailed(
                order_id=order_id, is_unknown=True, retry_seconds=wait_seconds, calls=calls, key_number=number
            )
        self._attempts.labels("declined").inc()
        return ChargeDeclined(
            order_id=order_id,
            reason=charge.reason[:REASON_MAX],
            calls=calls,
            is_soft=charge.is_soft and attempt.should_charge,
            key_number=attempt.event.key_number + 1,
        )

    async def refund(self, request: GatewayRequest) -> Any:
        """
        Refund the money, and return the result as an event.

        Raises:
            BreakerOpen: The circuit breaker permits no call now.
        """
        event: RefundRequested = request.event
        order_id, key = event.order_id, numbered_key("refund", event.order_id, event.key_number)
        call = partial(self._gateway.refund, key, order_id, event.reference, event.amount)
        try:
            refund = await self._operations.refund.call(call, LOOKUP_SECONDS_MAX)
        except GatewayError as error:
            self._record_failure("refund_failed", request, error)
            wait_seconds = self.refund_retry_seconds(event.attempt, error.retry_after_seconds)
            return self._refund_failed(event, wait_seconds, "refund_failed", is_definite=ends_key(error))
        except ResponseMismatch as mismatch:
            self._record_failure("refund_failed", request, mismatch)
            return self._refund_failed(event, REFUND_RETRY_SECONDS_MAX, mismatch.reason)
        if isinstance(refund, RefundRejected):
            self._record_failure("refund_failed", request, refund)
            wait_seconds = self.refund_retry_seconds(event.attempt)
            return self._refund_failed(
                event,
                wait_seconds,
                f"refund_refused: {refund.reason}",
                is_definite=refund.is_definite,
                reference=refund.reference,
                refunded_total=refund.refunded_total or 0,
            )
        is_pending = isinstance(refund, RefundPending)
        self._attempts.labels("refund_pending" if is_pending else "refunded").inc()
        return (RefundProcessing if is_pending else RefundSucceeded)(
            order_id=order_id,
            reference=refund.reference,
            key_number=event.key_number,
            refunded_total=refund.refunded_total,
        )

    def _refund_failed(self, event: RefundRequested, wait_seconds: float, reason: str, **details: Any) -> RefundFailed:
        return RefundFailed(
            order_id=event.order_id,
            retry_seconds=wait_seconds,
            reason=reason[:REASON_MAX],
            key_number=event.key_number,
            **details,
        )

    def _record_failure(self, outcome: str, request: GatewayRequest, error: Exception | RefundRejected) -> None:
        """Count a failed attempt, and log it: at ERROR if a person has to act, at WARNING if it is made under a new key."""
        self._attempts.labels(outcome).inc()
        levels = {ResponseMismatch: "ERROR", RefundRejected: "WARNING"}
        logger.log(
            levels.get(type(error), "DEBUG"), "gateway call failed", gateway=self._gateway.name, outcome=outcome,
            order_id=request.event.order_id, detail=str(error), reason=getattr(error, "reason", None),
            correlation_id=request.trace.correlation_id,
        )  # fmt: skip

    def retry_seconds(
        self, attempt: int, asked_seconds: float | None = None, seconds_max: float = RETRY_SECONDS_MAX
    ) -> float:
        """
        Return how long to wait after the failed attempt number *attempt*.

        It is 0.5 s, doubles up to *seconds_max*, has jitter, and is at least *asked_seconds*, if the provider asked.
        """
        own_seconds = min(0.5 * 2.0 ** min(attempt - 1, 10), seconds_max)
        return self._spread(max(asked_seconds or 0.0, own_seconds))

    def refund_retry_seconds(self, attempt: int, asked_seconds: float | None = None) -> float:
        """Return how long a refund waits after the failed attempt number *attempt*: as for a charge, but with a higher maximum."""
        return self.retry_seconds(attempt, asked_seconds, REFUND_RETRY_SECONDS_MAX)

    def _spread(self, seconds: float) -> float:
        """Return *seconds* to 1.5 times *seconds*, so that waiting requests do not all come back at the same time."""
        return seconds * self._rng.uniform(1.0, 1.5)


def _permits_a_charge(found: ChargeResult | None) -> bool:
    """Return whether a charge may be made after a look-up that has *found* this."""
    return found is None or (isinstance(found, Declined) and found.is_soft)


class _TracedCalls(GatewayCalls):
    """The same, with a span for each request that a worker processes, and one for each call within it."""

    def __init__(
        self, tracer: Tracer, consumer: str, gateway: Gateway, operations: Operations, metrics: Metrics, rng: random.Random
    ) -> None:
        methods = ("charge", "find", "cancel", "refund")
        super().__init__(tracer.traced(gateway, gateway.name, methods), operations, metrics, rng)
        self._processing = partial(tracer.processing, consumer)

    async def charge(self, attempt: ChargeAttempt, recheck: Recheck) -> Any:
        """Make the charge within a span; see `GatewayCalls.charge`."""
        with self._span(attempt.request):
            return await super().charge(attempt, recheck)

    async def refund(self, request: GatewayRequest) -> Any:
        """Make the refund within a span; see `GatewayCalls.refund`."""
        with self._span(request):
            return await super().refund(request)

    def _span(self, request: GatewayRequest) -> AbstractContextManager[None]:
        return self._processing(subject_of(type(request.event)), request.id, request.trace)


def make_calls(
    consumer: str, gateway: Gateway, operations: Operations, metrics: Metrics, rng: random.Random
) -> GatewayCalls:
    """Return the calls that the worker *consumer* makes, with spans if *metrics* has a tracer."""
    if metrics.tracer is None:
        return GatewayCalls(gateway, operations, metrics, rng)
    return _TracedCalls(metrics.tracer, consumer, gateway, operations, metrics, rng)
