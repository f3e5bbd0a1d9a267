"""A charge or refund request to the payment worker, and what is known of earlier calls for it."""

from __future__ import annotations

__all__ = ["FRESH_SECONDS", "ChargeAttempt", "GatewayRequest", "answer_id", "may_be_repeat", "parse_time", "result_id", "result_ids"]

from datetime import datetime
from typing import Any

from attrs import define, field

from app.runtime.receiving import Received
from app.telemetry.trace import TraceContext
from bus.ids import derived_id
from modules.payments.events import (
    ChargeDeclined,
    ChargeFailed,
    ChargeMismatch,
    ChargeRequested,
    ChargeSucceeded,
    RefundFailed,
    RefundProcessing,
    RefundSucceeded,
)
from modules.payments.ledger import RefundStatus, own_refund
from modules.payments.state import Payment, PaymentStatus

FRESH_SECONDS = 60.0
"""
An older request is compared with the stored payment before the call: the payment knows of earlier calls.

This is less than the time for which a broker recognises duplicates, so that a duplicate that the broker lets through is
never taken for a first request.
"""

_RESULT_NAMES: dict[type, str] = {
    ChargeSucceeded: "Charged",
    ChargeDeclined: "ChargeRefused",
    ChargeFailed: "ChargeFailed",
    ChargeMismatch: "ChargeContradicted",
    RefundSucceeded: "Refunded",
    RefundFailed: "RefundFailed",
    RefundProcessing: "RefundProcessing",
}
"""
What the id of a result is derived from, by the result's class. Never change these texts.

They are the names that the classes had when these ids were introduced. During an upgrade a worker of an older version
may have submitted the result of a request already; the inbox recognises the duplicate only if the ids are the same.
"""


@define  # not frozen: one is made for each message, and a frozen class takes longer to instantiate
class GatewayRequest:
    """
    A received charge or refund request.

    *is_first_call*: no earlier call to the provider is possible. *needs_recheck*: the request has waited so long that the
    payment's stored state may have changed. *may_be_repeat*: another delivery of the request may have been processed by
    a worker that was killed before it could submit the result; only a look-up at the provider can show it.
    """

    event: Any
    id: str
    trace: TraceContext
    is_express: bool
    is_first_call: bool
    needs_recheck: bool
    may_be_repeat: bool

    def not_sent(self, retry_seconds: float) -> ChargeFailed | RefundFailed:
        """Return the result of a request for which the provider was not called; it is due again in *retry_seconds*."""
        order_id = self.event.order_id
        if isinstance(self.event, ChargeRequested):
            return ChargeFailed(
                order_id=order_id,
                is_unknown=self.may_be_repeat,
                retry_seconds=retry_seconds,
                calls=0,
                key_number=self.event.key_number,
            )
        key_number = self.event.key_number
        return RefundFailed(order_id=order_id, retry_seconds=retry_seconds, calls=0, key_number=key_number)

    def has_ended(self, payment: Payment | None) -> bool:
        """Return whether *payment* knows how the refund under this request's key ended: it was made, or another key may follow."""
        refund = None if payment is None or payment.ledger is None else own_refund(payment.ledger, self.event.key_number)
        return refund is not None and refund.status in (RefundStatus.SUCCEEDED, RefundStatus.FAILED)


@define
class ChargeAttempt:
    """
    A charge request, and what is known about it just before the provider is called.

    *should_charge* is false if the order was cancelled: then an existing charge is looked up and none is made.
    *is_first_call* is false if an earlier call is possible: then the charge is looked up before it is made.
    *is_answered* is true if the payment has the result of this request already, and a later request follows.
    """

    request: GatewayRequest
    should_charge: bool = field(init=False)
    is_first_call: bool = field(init=False)
    needs_recheck: bool = field(init=False)
    is_answered: bool = field(default=False, init=False)
    is_delay_reported: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.should_charge = self.request.event.is_wanted
        self.is_first_call = self.request.is_first_call
        self.needs_recheck = self.request.needs_recheck

    @property
    def event(self) -> ChargeRequested:
        """The request's event."""
        event: ChargeRequested = self.request.event
        return event

    @property
    def may_exist(self) -> bool:
        """True if the charge is looked up: an earlier call may have made it, or the order was cancelled."""
        return not (self.is_first_call and self.should_charge)

    @property
    def is_withdrawn(self) -> bool:
        """True if the order was cancelled and the provider was never called: then no call is needed at all."""
        return self.is_first_call and not self.should_charge

    def recheck(self, payment: Payment | None) -> None:
        """Update the attempt from *payment*, the stored state: the order may have been cancelled or paid meanwhile."""
        self.should_charge = self.should_charge and _is_chargeable(payment)
        self.is_answered = self.should_charge and payment is not None and payment.attempts > self.event.attempt
        self.is_first_call = self.is_first_call and payment is not None and payment.calls == 0


def may_be_repeat(received: Received, requested_at: datetime | None, known_since: datetime) -> bool:
    """
    Return whether the provider may have been called for *received* before: by this worker, an earlier process, or another replica.

    An earlier process may have called the provider and been killed before it could submit the result; then the stored
    payment does not know of that call either. What this process has requested is not before *known_since*, and what it takes
    without the bus is its own.
    """
    delivery = received.delivery
    if delivery is None:
        return False
    is_redelivered = delivery.tries > 1 or delivery.message.id != received.id
    return is_redelivered or requested_at is None or requested_at < known_since


def result_id(request_id: str, consumer: str, result: Any) -> str:
    """
    Return the id of *result*, an event that *consumer* submits for the request *request_id*.

    The kind of result is part of it: a request that is processed twice, because the worker was killed in between, may
    have two different results, and payments needs both.
    """
    return _derived_id(request_id, consumer, _RESULT_NAMES[type(result)], getattr(result, "is_unknown", False))


def result_ids(request_id: str, consumer: str) -> list[str]:
    """Return all ids that `result_id` may return for the request *request_id*."""
    return [_derived_id(request_id, consumer, name, is_unknown) for name in _RESULT_NAMES.values() for is_unknown in (False, True)]


def _derived_id(request_id: str, consumer: str, name: str, is_unknown: bool) -> str:
    return derived_id(request_id, f"{consumer}.{name}.{is_unknown}")


def answer_id(request_id: str, consumer: str, answer: Any) -> str:
    """Return what `result_id` returns; an empty id if *answer* is nothing that a worker submits."""
    return result_id(request_id, consumer, answer) if type(answer) in _RESULT_NAMES else ""


def parse_time(text: str | None) -> datetime | None:
    """Return the time that *text* holds (RFC 3339, with a time zone); None if it holds none."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return time if time.tzinfo is not None else None


def _is_chargeable(payment: Payment | None) -> bool:
    """Return whether the payment's money may still be taken."""
    return (
        payment is not None
        and payment.status in (PaymentStatus.PENDING, PaymentStatus.UNKNOWN)
        and not (payment.is_cancelled or payment.needs_review)
    )
