"""
The state machine of a payment.

    (no row) --reserved--> PENDING --charged--> CAPTURED --all of it refunded--> REFUNDED
       |                    |   \\__ no response __> UNKNOWN --looked up--> CAPTURED or DECLINED
       |                    \\--declined--> DECLINED
       \\--cancelled--> DECLINED, without an amount: nothing may be charged any more

This module never calls the gateway. It publishes requests; the payment worker makes the calls and submits the results.

- A retry is a `Scheduled` event. It waits in the database, not in a process, and uses up no delivery attempt.
- UNKNOWN is neither success nor failure: nothing is undone before the worker has looked the charge up at the gateway.
- A soft decline is retried on a schedule, within the order's time-out; what is given up is cancelled at the gateway.
- A charge that turns up after the order was cancelled is refunded. `modules.payments.refunds` has all about refunds.
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
from modules.module import CancelTimer, Decision, Key, Unexpected, evolve, no_change
from modules.orders.events import OrderCancelled, OrderRefundRequested
from modules.payments.charges import (
    ORDER_CANCELLED,
    captured,
    declined,
    on_order_cancelled,
    on_stock_reserved,
    require_review,
    retry_charge,
    retry_declined,
    retry_timer,
)
from modules.payments.events import (
    ChargeDeclined,
    ChargeDelayed,
    ChargeFailed,
    ChargeMismatch,
    ChargeNotified,
    ChargeSucceeded,
    DeclineNotified,
    DisputeReported,
    NoticeRejected,
    PaymentDelayed,
    RefundFailed,
    RefundNotified,
    RefundProcessing,
    RefundReported,
    RefundSucceeded,
    SettleImpossible,
    SettleRequested,
)
from modules.payments.refunds import (
    concluded,
    on_dispute,
    on_order_refund,
    on_refund_failed,
    on_refund_processing,
    on_refund_reported,
    on_refund_succeeded,
    with_total,
)
from modules.payments.settling import SETTLED, on_settle
from modules.payments.state import Payment, PaymentStatus

Notice = ChargeNotified | DeclineNotified | RefundNotified | RefundReported | DisputeReported
_CHARGED = (PaymentStatus.CAPTURED, PaymentStatus.REFUNDED)


def keys(event: Event) -> tuple[Key, ...]:
    """Return the key of the one payment that *event* is about."""
    return ((Payment, event.order_id),)


def decide(
    states: Sequence[Payment | None], event: Event, now: datetime, *, timeout: timedelta = timedelta(seconds=900)
) -> Decision:
    """
    Return what follows from *event* for the payment; its order is cancelled *timeout* after it was placed.

    Raises:
        Unexpected: The state machine has no transition for *event* in this state.
    """
    (payment,) = states
    if payment is None:
        match event:
            case StockReserved():
                return on_stock_reserved(event, now)
            case OrderCancelled():
                ended = Payment(
                    order_id=event.order_id,
                    status=PaymentStatus.DECLINED,
                    reason=ORDER_CANCELLED,
                    is_cancelled=True,
                    updated_at=now,
                )
                return Decision((ended,))
            case ChargeNotified() | DeclineNotified() | RefundNotified() | RefundReported() | DisputeReported():
                return no_change(NoticeRejected(order_id=event.order_id, reason="unknown_order"))
            case ChargeDelayed():
                return no_change()
            case SettleRequested():
                return no_change(SettleImpossible(order_id=event.order_id, code=None))
        raise Unexpected(f"{type(event).__name__} for a payment that was never requested")

    match payment.status, event:
        case _, StockReserved():
            return no_change()  # already requested, or cancelled before
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN | PaymentStatus.DECLINED), ChargeSucceeded()):
            return captured(payment, event, now)
        case PaymentStatus.UNKNOWN, ChargeDeclined() if payment.needs_review and not payment.is_cancelled:
            return Decision((evolve(payment, is_waiting=False, updated_at=now),))  # contradicts the earlier response
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), ChargeDeclined(is_soft=True)):
            return retry_declined(payment, event, now, timeout)
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), ChargeDeclined()):
            reason = payment.reason if payment.is_declined_softly and not event.calls else None
            return declined(payment, reason or event.reason, now, event.calls)
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), ChargeFailed()):
            return retry_charge(payment, event, now)
        case PaymentStatus.DECLINED, ChargeFailed(is_unknown=True) if payment.is_cancelled:
            return retry_charge(payment, event, now)  # the attempt was already under way when its timer was cancelled
        case (
            (PaymentStatus.PENDING | PaymentStatus.UNKNOWN | PaymentStatus.DECLINED),
            ChargeMismatch(),
        ):
            return require_review(payment, event, now)
        case PaymentStatus.PENDING, ChargeDelayed() if not (payment.is_cancelled or payment.is_waiting):
            return no_change(PaymentDelayed(order_id=payment.order_id))
        case _, (ChargeSucceeded() | ChargeDeclined() | ChargeFailed() | ChargeMismatch() | ChargeDelayed()):
            return no_change()  # the result of an earlier attempt
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), OrderCancelled()):
            return on_order_cancelled(payment, now)
        case PaymentStatus.CAPTURED, OrderCancelled() if not payment.is_cancelled:
            return concluded(payment, evolve(payment, is_cancelled=True), now)
        case _, OrderCancelled():
            return Decision((evolve(payment, is_cancelled=True, updated_at=now),))
        case (PaymentStatus.CAPTURED | PaymentStatus.REFUNDED), RefundSucceeded():
            return on_refund_succeeded(payment, event, now)
        case (PaymentStatus.CAPTURED | PaymentStatus.REFUNDED), RefundProcessing():
            return on_refund_processing(payment, event, now)
        case (PaymentStatus.CAPTURED | PaymentStatus.REFUNDED), RefundFailed():
            return on_refund_failed(payment, event, now)
        case _, OrderRefundRequested():
            return on_order_refund(payment, event, now)
        case _, SettleRequested():
            return on_settle(payment, event, now)
        case _, (ChargeNotified() | DeclineNotified() | RefundNotified() | RefundReported() | DisputeReported()):
            return _on_gateway_notice(payment, event, now)
    raise Unexpected(f"{type(event).__name__} while {payment.status.value}")


def _on_gateway_notice(payment: Payment, notice: Notice, now: datetime) -> Decision:
    """Apply *notice* if it matches the payment; it then counts as much as the response to a call."""
    mismatch = _mismatch(payment, notice)
    if mismatch is not None:
        return no_change(NoticeRejected(order_id=payment.order_id, reason=mismatch))
    if _lacks_reference(payment) and not isinstance(notice, DeclineNotified):
        named = evolve(payment, reference=notice.reference, updated_at=now)
        decision = _on_gateway_notice(named, notice, now)
        return decision if decision.states else Decision((named,), decision.events)
    if payment.status is PaymentStatus.DECLINED and isinstance(notice, RefundReported | DisputeReported):
        return _on_late_proof(payment, notice, now)
    match payment.status, notice:
        case _, RefundReported():
            return on_refund_reported(payment, notice, now)
        case _, DisputeReported():
            return on_dispute(payment, notice, now)
        case (PaymentStatus.CAPTURED | PaymentStatus.REFUNDED), RefundNotified(refunded_amount=total):
            refunded = with_total(payment, total)
            return no_change() if refunded is payment else concluded(payment, refunded, now)
        case _, ChargeNotified() if payment.status not in _CHARGED:
            charged = ChargeSucceeded(order_id=payment.order_id, reference=notice.reference, calls=0)
            decision = captured(payment, charged, now)
        case _, RefundNotified(refunded_amount=total):  # so it was captured, too
            charged = ChargeSucceeded(
                order_id=payment.order_id, reference=notice.reference, calls=0, refunded_total=total
            )
            decision = captured(payment, charged, now)
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), DeclineNotified(is_soft=False)) if not payment.needs_review:
            decision = declined(payment, notice.reason, now)
        case _:
            decision = no_change()  # also for a soft decline: the result of the call has the same content
    if decision.states and payment.is_waiting:
        return Decision(decision.states, (*decision.events, CancelTimer(retry_timer(payment))))
    return decision


def _on_late_proof(payment: Payment, notice: RefundReported | DisputeReported, now: datetime) -> Decision:
    """Apply *notice* to a payment that was declined: what is refunded or disputed was captured, although it was declined."""
    decision = on_dispute(payment, notice, now) if isinstance(notice, DisputeReported) else on_refund_reported(payment, notice, now)
    [noted] = decision.states or (payment,)
    assert isinstance(noted, Payment)
    return captured(noted, ChargeSucceeded(order_id=payment.order_id, reference=notice.reference, calls=0), now)


def _mismatch(payment: Payment, notice: Notice) -> str | None:
    """Return the code of what contradicts the payment in *notice*, or None if it matches."""
    if payment.amount is None:
        return "not_asked_for"
    if notice.amount.currency != payment.currency and not isinstance(notice, DisputeReported):
        return "wrong_currency"
    is_of_charge = not isinstance(notice, RefundReported | DisputeReported)
    if is_of_charge and notice.amount.amount != payment.amount:
        return "wrong_amount"
    is_other = payment.status in _CHARGED and notice.reference != payment.reference and not _lacks_reference(payment)
    if is_other and not isinstance(notice, DeclineNotified):
        return "two_charges"
    return None


def _lacks_reference(payment: Payment) -> bool:
    """Return True if a person settled the payment as charged without the provider's reference of the charge."""
    return payment.status in _CHARGED and payment.reference == SETTLED
