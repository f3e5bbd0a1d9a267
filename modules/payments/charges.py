"""How a payment is charged: the first attempt, the next ones, and the end of each."""

from __future__ import annotations

__all__ = [
    "ORDER_CANCELLED",
    "captured",
    "declined",
    "on_order_cancelled",
    "on_stock_reserved",
    "require_review",
    "retry_charge",
    "retry_declined",
    "retry_timer",
]

from datetime import datetime, timedelta

import attrs

from bus.ids import time_of_id
from modules.inventory.events import StockReserved
from modules.module import CancelTimer, Decision, Scheduled, Unexpected, evolve, no_change
from modules.payments.events import (
    ChargeDeclined,
    ChargeFailed,
    ChargeMismatch,
    ChargeRequested,
    ChargeSucceeded,
    PaymentCaptured,
    PaymentDeclined,
    PaymentDelayed,
    PaymentReviewRequired,
)
from modules.payments.refunds import OPEN_MAX, concluded, with_total
from modules.payments.state import NO_ANSWER, NO_LEDGER, Payment, PaymentStatus
from modules.values import Money

ORDER_CANCELLED = "order_cancelled"
RECHECK_DELAY = timedelta(seconds=5)
"""Delay of the look-up after a contradictory response, which may be garbled while the gateway's records are right."""

LATE_SECONDS_MAX = 300
LATE_SHARE = 20
LATE_ATTEMPT_SECONDS = 2
"""
The charge of a cancelled order is looked up after a twentieth of the order's age, because no customer waits for it, but no later than
two seconds times the attempts made: after a jump of the clock an order only looks old.
"""

LATE_ATTEMPTS_MIN = 100
"""This many attempts, which take hours, precede the decision that an outcome stays unknown, whatever the clock shows."""

SOFT_DECLINE_SECONDS = (30, 120, 300, 900)
"""Delays of the attempts that follow a soft decline."""


def on_stock_reserved(event: StockReserved, now: datetime) -> Decision:
    """Request the charge of an order's total."""
    payment = Payment(
        order_id=event.order_id,
        status=PaymentStatus.PENDING,
        amount=event.total.amount,
        currency=event.total.currency,
        payment_method=event.payment_method,
        payment_customer=event.payment_customer,
        shipping_address=event.shipping_address,
        attempts=1,
        updated_at=now,
    )
    return Decision((payment,), (_request_charge(payment),))


def captured(before: Payment, event: ChargeSucceeded, now: datetime) -> Decision:
    """Book the capture; the money of a cancelled order goes back."""
    payment = evolve(
        before,
        status=PaymentStatus.CAPTURED,
        reference=event.reference,
        reason=None,
        calls=before.calls + event.calls,
        is_waiting=False,
        updated_at=now,
    )
    if event.refunded_total:
        payment = with_total(payment, event.refunded_total)
    if payment.is_cancelled:
        return concluded(before, payment, now)
    taken = PaymentCaptured(order_id=payment.order_id, amount=_amount(payment), reference=event.reference)
    return Decision((payment,), (taken,)) if payment.ledger is None else concluded(before, payment, now, taken)


def declined(payment: Payment, reason: str, now: datetime, calls: int = 0) -> Decision:
    """End the payment without a charge."""
    payment = evolve(
        payment,
        status=PaymentStatus.DECLINED,
        reason=reason,
        calls=payment.calls + calls,
        is_waiting=False,
        updated_at=now,
    )
    if payment.is_cancelled:
        return Decision((payment,))
    return Decision((payment,), (PaymentDeclined(order_id=payment.order_id, amount=_amount(payment), reason=reason),))


def retry_charge(payment: Payment, event: ChargeFailed, now: datetime) -> Decision:
    """
    Schedule the next attempt, under the idempotency key that the worker has named.

    If the order is cancelled and the gateway has certainly received no call, the payment is declined instead. If its outcome
    is still unknown after `OPEN_MAX`, the payment is left to a person.
    """
    is_unknown = event.is_unknown or payment.status is PaymentStatus.UNKNOWN
    if payment.is_cancelled and not is_unknown and not payment.is_declined_softly:
        return declined(payment, ORDER_CANCELLED, now, event.calls)
    age = _age(payment, now) if payment.is_cancelled else timedelta(0)
    if age > OPEN_MAX and payment.attempts >= LATE_ATTEMPTS_MIN:
        return _give_up(payment, event, now)
    waiting = evolve(
        payment,
        status=PaymentStatus.UNKNOWN if is_unknown else PaymentStatus.PENDING,
        reason=payment.reason if payment.status is PaymentStatus.UNKNOWN or not is_unknown else None,
        attempts=payment.attempts + 1,  # even if no call was made: only a first attempt charges without a look-up
        calls=payment.calls + event.calls,
        is_waiting=True,
        updated_at=now,
    )
    request = _request_charge(waiting, event.key_number)
    late_seconds = min(age.total_seconds() / LATE_SHARE, payment.attempts * LATE_ATTEMPT_SECONDS, LATE_SECONDS_MAX)
    seconds = max(event.retry_seconds, late_seconds)
    retry = Scheduled(request, now + timedelta(seconds=seconds), retry_timer(payment))
    if payment.is_cancelled or payment.is_waiting:
        return Decision((waiting,), (retry,))
    return Decision((waiting,), (retry, PaymentDelayed(order_id=payment.order_id)))


def retry_declined(payment: Payment, event: ChargeDeclined, now: datetime, timeout: timedelta) -> Decision:
    """
    Schedule another attempt after a soft decline, within the time-out of the order.

    If there is none left, the charge is cancelled at the gateway first: the customer's bank could still accept it.
    """
    ledger = payment.ledger or NO_LEDGER
    retries = ledger.soft_declines
    placed_at = time_of_id(payment.order_id)
    due_at = now + timedelta(seconds=SOFT_DECLINE_SECONDS[retries] if retries < len(SOFT_DECLINE_SECONDS) else 0)
    is_given_up = (
        payment.is_cancelled
        or retries >= len(SOFT_DECLINE_SECONDS)
        or (placed_at is not None and due_at >= placed_at + timeout)
    )
    waiting = evolve(
        payment,
        status=PaymentStatus.PENDING,
        reason=event.reason,
        attempts=payment.attempts + 1,
        calls=payment.calls + event.calls,
        is_waiting=not is_given_up,
        ledger=attrs.evolve(ledger, soft_declines=retries + 1, is_given_up=is_given_up),
        updated_at=now,
    )
    if is_given_up:
        return Decision((waiting,), (_request_charge(waiting),))
    retry = Scheduled(_request_charge(waiting, event.key_number), due_at, retry_timer(payment))
    delayed = () if retries else (PaymentDelayed(order_id=payment.order_id),)
    return Decision((waiting,), (retry, *delayed))


def on_order_cancelled(payment: Payment, now: datetime) -> Decision:
    """Stop a payment whose outcome is open. An attempt that the worker has under way still submits its result."""
    if payment.is_cancelled:
        return no_change()
    cancelled = evolve(payment, is_cancelled=True, updated_at=now)
    if payment.needs_review and not payment.is_waiting:
        return Decision((cancelled,), (_request_charge(cancelled),))
    if not payment.is_waiting:
        return Decision((cancelled,))
    if payment.status is PaymentStatus.PENDING and not payment.is_declined_softly:
        ended = evolve(cancelled, status=PaymentStatus.DECLINED, reason=ORDER_CANCELLED, is_waiting=False)
        return Decision((ended,), (CancelTimer(retry_timer(payment)),))
    unknown = evolve(cancelled, is_waiting=False)
    return Decision((unknown,), (CancelTimer(retry_timer(payment)), _request_charge(unknown)))


def require_review(payment: Payment, event: ChargeMismatch, now: datetime) -> Decision:
    """Leave the payment to a person, after one more look-up."""
    is_first = not payment.needs_review
    under_review = evolve(
        payment,
        status=PaymentStatus.UNKNOWN,
        reason=event.reason,
        reference=event.reference or payment.reference,
        attempts=payment.attempts + event.calls,
        calls=payment.calls + event.calls,
        is_waiting=is_first,
        updated_at=now,
    )
    if not is_first:
        return Decision((under_review,))
    recheck = Scheduled(_request_charge(under_review), now + RECHECK_DELAY, retry_timer(payment))
    review_required = PaymentReviewRequired(order_id=payment.order_id, reason=event.reason)
    return Decision((under_review,), (recheck, review_required))


def _give_up(payment: Payment, event: ChargeFailed, now: datetime) -> Decision:
    """Leave a payment to a person whose charge the gateway has neither made nor declined for weeks."""
    given_up = evolve(
        payment,
        status=PaymentStatus.UNKNOWN,
        reason=payment.reason or NO_ANSWER,
        calls=payment.calls + event.calls,
        is_waiting=False,
        updated_at=now,
    )
    is_reported = payment.needs_review
    return Decision((given_up,), () if is_reported else (PaymentReviewRequired(order_id=payment.order_id, reason=NO_ANSWER),))


def _age(payment: Payment, now: datetime) -> timedelta:
    """Return for how long the order of *payment* has existed; zero if its id contains no time."""
    placed_at = time_of_id(payment.order_id)
    return timedelta(0) if placed_at is None else max(timedelta(0), now - placed_at)


def _request_charge(payment: Payment, key_number: int = 1) -> ChargeRequested:
    return ChargeRequested(
        order_id=payment.order_id,
        amount=_amount(payment),
        attempt=payment.attempts,
        is_wanted=not (payment.is_cancelled or payment.needs_review or payment.is_given_up),
        payment_method=payment.payment_method,
        payment_customer=payment.payment_customer,
        shipping_address=payment.shipping_address,
        key_number=key_number,
    )


def _amount(payment: Payment) -> Money:
    """
    Return the amount of *payment*.

    Raises:
        Unexpected: It has none: the order was cancelled before a charge was requested.
    """
    if payment.amount is None or payment.currency is None:
        raise Unexpected("the payment has no amount: no charge was ever requested")
    return Money(payment.amount, payment.currency)


def retry_timer(payment: Payment) -> str:
    """Return the name of the timer of the next attempt to charge."""
    return f"charge:{payment.order_id}"
