"""
The state machine of a payment.

    (no row) --reserved--> PENDING --charged--> CAPTURED --cancelled, then refunded--> REFUNDED
       |                    |   \\__ no response __> UNKNOWN --looked up--> CAPTURED or DECLINED
       |                    \\--declined--> DECLINED
       \\--cancelled--> DECLINED, without an amount: nothing may be charged any more

This module never calls the gateway. It publishes requests; the payment worker makes the calls and submits the results.

- A retry is a `Scheduled` event. It waits in the database, not in a process, and uses up no delivery attempt.
- UNKNOWN is neither success nor failure: nothing is undone before the worker has looked the charge up at the gateway.
- A charge that turns up after the order was cancelled is refunded.
- A response that contradicts the request puts the payment under review: the status is UNKNOWN with a reason. It is
  looked up once more, and again when the order is cancelled, and never charged again.
- A notice, which the gateway sends by itself (a webhook), is compared with what was requested before it counts.
"""

from __future__ import annotations

__all__ = ["decide", "keys"]

from collections.abc import Sequence
from datetime import datetime, timedelta

from bus.subjects import Event
from modules.inventory.events import StockReserved
from modules.module import CancelTimer, Decision, Key, Scheduled, Unexpected, evolve, no_change
from modules.orders.events import OrderCancelled
from modules.payments.events import (
    ChargeDeclined,
    ChargeDelayed,
    ChargeFailed,
    ChargeMismatch,
    ChargeNotified,
    ChargeRequested,
    ChargeSucceeded,
    DeclineNotified,
    NoticeRejected,
    PaymentCaptured,
    PaymentDeclined,
    PaymentDelayed,
    PaymentRefunded,
    PaymentReviewRequired,
    RefundFailed,
    RefundNotified,
    RefundRequested,
    RefundSucceeded,
)
from modules.payments.state import Payment, PaymentStatus
from modules.values import Money

ORDER_CANCELLED = "order_cancelled"
RECHECK_DELAY = timedelta(seconds=5)
"""Delay of the look-up after a contradictory response, which may be garbled while the gateway's records are right."""

Notice = ChargeNotified | DeclineNotified | RefundNotified


def keys(event: Event) -> tuple[Key, ...]:
    """Return the key of the one payment that *event* is about."""
    return ((Payment, event.order_id),)


def decide(states: Sequence[Payment | None], event: Event, now: datetime) -> Decision:
    """
    Return what follows from *event* for the payment.

    Raises:
        Unexpected: The state machine has no transition for *event* in this state.
    """
    (payment,) = states
    if payment is None:
        match event:
            case StockReserved():
                return _on_stock_reserved(event, now)
            case OrderCancelled():
                declined = Payment(
                    order_id=event.order_id,
                    status=PaymentStatus.DECLINED,
                    reason=ORDER_CANCELLED,
                    is_cancelled=True,
                    updated_at=now,
                )
                return Decision((declined,))
            case ChargeNotified() | DeclineNotified() | RefundNotified():
                return no_change(NoticeRejected(order_id=event.order_id, reason="unknown_order"))
            case ChargeDelayed():
                return no_change()
        raise Unexpected(f"{type(event).__name__} for a payment that was never requested")

    match payment.status, event:
        case _, (ChargeNotified() | DeclineNotified() | RefundNotified()):
            return _on_gateway_notice(payment, event, now)
        case _, StockReserved():
            return no_change()  # already requested, or cancelled before
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN | PaymentStatus.DECLINED), ChargeSucceeded()):
            return _captured(payment, event, now)
        case PaymentStatus.UNKNOWN, ChargeDeclined() if payment.needs_review and not payment.is_cancelled:
            return Decision((evolve(payment, is_waiting=False, updated_at=now),))  # contradicts the earlier response
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), ChargeDeclined()):
            return _declined(payment, event.reason, now, event.calls)
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), ChargeFailed()):
            return _retry_charge(payment, event, now)
        case PaymentStatus.DECLINED, ChargeFailed(is_unknown=True) if payment.is_cancelled:
            return _retry_charge(payment, event, now)  # the attempt was already under way when its timer was cancelled
        case (
            (PaymentStatus.PENDING | PaymentStatus.UNKNOWN | PaymentStatus.DECLINED),
            ChargeMismatch(),
        ):
            return _require_review(payment, event, now)
        case PaymentStatus.PENDING, ChargeDelayed() if not (payment.is_cancelled or payment.is_waiting):
            return no_change(PaymentDelayed(order_id=payment.order_id))
        case _, (ChargeSucceeded() | ChargeDeclined() | ChargeFailed() | ChargeMismatch() | ChargeDelayed()):
            return no_change()  # the result of an earlier attempt
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), OrderCancelled()):
            return _on_order_cancelled(payment, now)
        case PaymentStatus.CAPTURED, OrderCancelled() if not payment.is_cancelled:
            return _start_refund(evolve(payment, is_cancelled=True, updated_at=now))
        case _, OrderCancelled():
            return Decision((evolve(payment, is_cancelled=True, updated_at=now),))
        case PaymentStatus.CAPTURED, RefundSucceeded():
            return _refunded(payment, event.reference, now)
        case PaymentStatus.CAPTURED, RefundFailed():
            return _retry_refund(payment, event, now)
        case PaymentStatus.REFUNDED, (RefundSucceeded() | RefundFailed()):
            return no_change()
    raise Unexpected(f"{type(event).__name__} while {payment.status.value}")


def _on_stock_reserved(event: StockReserved, now: datetime) -> Decision:
    payment = Payment(
        order_id=event.order_id,
        status=PaymentStatus.PENDING,
        amount=event.total.amount,
        currency=event.total.currency,
        payment_method=event.payment_method,
        attempts=1,
        updated_at=now,
    )
    return Decision((payment,), (_request_charge(payment),))


def _captured(payment: Payment, event: ChargeSucceeded, now: datetime) -> Decision:
    payment = evolve(
        payment,
        status=PaymentStatus.CAPTURED,
        reference=event.reference,
        reason=None,
        calls=payment.calls + event.calls,
        is_waiting=False,
        updated_at=now,
    )
    if payment.is_cancelled:
        return _start_refund(payment)
    captured = PaymentCaptured(order_id=payment.order_id, amount=_amount(payment), reference=event.reference)
    return Decision((payment,), (captured,))


def _declined(payment: Payment, reason: str, now: datetime, calls: int = 0) -> Decision:
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


def _retry_charge(payment: Payment, event: ChargeFailed, now: datetime) -> Decision:
    """
    Schedule the next attempt, under the idempotency key that the worker has named.

    If the order is cancelled and the gateway has certainly received no call, the payment is declined instead.
    """
    is_unknown = event.is_unknown or payment.status is PaymentStatus.UNKNOWN
    if payment.is_cancelled and not is_unknown:
        return _declined(payment, ORDER_CANCELLED, now, event.calls)
    waiting = evolve(
        payment,
        status=PaymentStatus.UNKNOWN if is_unknown else PaymentStatus.PENDING,
        attempts=payment.attempts + 1,  # even if no call was made: only a first attempt charges without a look-up
        calls=payment.calls + event.calls,
        is_waiting=True,
        updated_at=now,
    )
    request = _request_charge(waiting, event.key_number)
    retry = Scheduled(request, now + timedelta(seconds=event.retry_seconds), _retry_timer(payment))
    if payment.is_cancelled or payment.is_waiting:
        return Decision((waiting,), (retry,))
    return Decision((waiting,), (retry, PaymentDelayed(order_id=payment.order_id)))


def _on_order_cancelled(payment: Payment, now: datetime) -> Decision:
    """Stop a payment whose outcome is open. An attempt that the worker has under way still submits its result."""
    if payment.is_cancelled:
        return no_change()
    cancelled = evolve(payment, is_cancelled=True, updated_at=now)
    if payment.needs_review and not payment.is_waiting:
        return Decision((cancelled,), (_request_charge(cancelled),))
    if not payment.is_waiting:
        return Decision((cancelled,))
    if payment.status is PaymentStatus.PENDING:
        declined = evolve(cancelled, status=PaymentStatus.DECLINED, reason=ORDER_CANCELLED, is_waiting=False)
        return Decision((declined,), (CancelTimer(_retry_timer(payment)),))
    unknown = evolve(cancelled, is_waiting=False)
    return Decision((unknown,), (CancelTimer(_retry_timer(payment)), _request_charge(unknown)))


def _require_review(payment: Payment, event: ChargeMismatch, now: datetime) -> Decision:
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
    recheck = Scheduled(_request_charge(under_review), now + RECHECK_DELAY, _retry_timer(payment))
    review_required = PaymentReviewRequired(order_id=payment.order_id, reason=event.reason)
    return Decision((under_review,), (recheck, review_required))


def _on_gateway_notice(payment: Payment, notice: Notice, now: datetime) -> Decision:
    """Apply *notice* if it matches the payment; it then counts as much as the response to a call."""
    mismatch = _mismatch(payment, notice)
    if mismatch is not None:
        return no_change(NoticeRejected(order_id=payment.order_id, reason=mismatch))
    match payment.status, notice:
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN | PaymentStatus.DECLINED), ChargeNotified()):
            charged = ChargeSucceeded(order_id=payment.order_id, reference=notice.reference, calls=0)
            decision = _captured(payment, charged, now)
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), DeclineNotified()) if not payment.needs_review:
            decision = _declined(payment, notice.reason, now)
        case PaymentStatus.CAPTURED, RefundNotified():
            decision = _refunded(payment, notice.reference, now)
        case _:
            decision = no_change()
    if isinstance(notice, RefundNotified) and not payment.is_cancelled:
        # The refund was made at the provider. It counts, and a person must know of it. A repeated notice gets the same
        # reply, because the process that handled the first one may have died before it stored the dead letter.
        refunded_elsewhere = NoticeRejected(order_id=payment.order_id, reason="refunded_elsewhere")
        return Decision(decision.states, (*decision.events, refunded_elsewhere))
    if decision.states and payment.is_waiting:
        return Decision(decision.states, (*decision.events, CancelTimer(_retry_timer(payment))))
    return decision


def _mismatch(payment: Payment, notice: Notice) -> str | None:
    """Return the code of what contradicts the payment in *notice*, or None if it matches."""
    is_settled = payment.status in (PaymentStatus.CAPTURED, PaymentStatus.REFUNDED)
    if payment.amount is None:
        return "not_asked_for"
    if notice.amount.amount != payment.amount:
        return "wrong_amount"
    if notice.amount.currency != payment.currency:
        return "wrong_currency"
    if is_settled and notice.reference != payment.reference and not isinstance(notice, DeclineNotified):
        return "two_charges"
    if isinstance(notice, RefundNotified) and not is_settled:
        return "not_captured"
    if isinstance(notice, RefundNotified) and notice.refunded_amount != payment.amount:
        return "partly_refunded"
    return None


def _refunded(payment: Payment, reference: str, now: datetime) -> Decision:
    refunded = evolve(payment, status=PaymentStatus.REFUNDED, reason=None, updated_at=now)
    return Decision(
        (refunded,), (PaymentRefunded(order_id=payment.order_id, amount=_amount(payment), reference=reference),)
    )


def _start_refund(payment: Payment) -> Decision:
    return Decision((payment,), (_request_refund(payment, 1),))


def _retry_refund(payment: Payment, event: RefundFailed, now: datetime) -> Decision:
    failed = evolve(payment, attempts=payment.attempts + event.calls, reason=event.reason, updated_at=now)
    retry = Scheduled(_request_refund(failed, failed.attempts), now + timedelta(seconds=event.retry_seconds))
    return Decision((failed,), (retry,))


def _request_charge(payment: Payment, key_number: int = 1) -> ChargeRequested:
    return ChargeRequested(
        order_id=payment.order_id,
        amount=_amount(payment),
        attempt=payment.attempts,
        is_wanted=not (payment.is_cancelled or payment.needs_review),
        payment_method=payment.payment_method,
        key_number=key_number,
    )


def _request_refund(payment: Payment, attempt: int) -> RefundRequested:
    assert payment.reference is not None
    return RefundRequested(
        order_id=payment.order_id, amount=_amount(payment), reference=payment.reference, attempt=attempt
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


def _retry_timer(payment: Payment) -> str:
    return f"charge:{payment.order_id}"
