"""
What follows from what, for an order's money.

    (never met) --reserved--> PENDING --charged--> CAPTURED --cancelled, then refunded--> REFUNDED
         |                     |   \\__ no answer __> UNKNOWN --looked up--> CAPTURED or DECLINED
         |                     \\--refused--> DECLINED
         \\--cancelled--> DECLINED, without an amount: nothing may be charged any more

The gateway is never called from here. We say what is to be asked of it; a worker asks, and tells us the answer. A
retry is a `Scheduled`: it is in the database, not in anybody's hands, and spends no delivery. Unknown is neither success
nor failure: nothing is undone before the gateway has been looked at. Money that turns up after the order was cancelled
goes back. What contradicts the request is put aside: still unknown, with a reason, looked at once more and when the order
is cancelled, and never charged again. What the gateway says by itself (its webhooks) is compared with what we asked for
before it counts.
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
SECOND_LOOK = timedelta(seconds=5)
"""After what contradicted the request: the answer may have been garbled, while the gateway's own books are right."""


def keys(event: Event) -> tuple[Key, ...]:
    """Name the one payment that *event* is about."""
    return ((Payment, event.order_id),)


def decide(states: Sequence[Payment | None], event: Event, now: datetime) -> Decision:
    """
    Say what becomes of a payment now that *event* has happened.

    Raises:
        Unexpected: There is no such row.
    """
    (payment,) = states
    if payment is None:
        match event:
            case StockReserved():
                return _requested(event, now)
            case OrderCancelled():
                never = Payment(
                    order_id=event.order_id,
                    status=PaymentStatus.DECLINED,
                    reason=ORDER_CANCELLED,
                    is_cancelled=True,
                    updated_at=now,
                )
                return Decision((never,))
            case ChargeNotified() | DeclineNotified() | RefundNotified():
                return no_change(NoticeRejected(order_id=event.order_id, reason="unknown_order"))
            case ChargeDelayed():
                return no_change()
        raise Unexpected(f"{type(event).__name__} for a payment that nobody asked for")

    match payment.status, event:
        case _, (ChargeNotified() | DeclineNotified() | RefundNotified()):
            return _on_gateway_notice(payment, event, now)
        case _, StockReserved():
            return no_change()  # asked for already, or cancelled before it was
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN | PaymentStatus.DECLINED), ChargeSucceeded()):
            return _charged(payment, event, now)
        case PaymentStatus.UNKNOWN, ChargeDeclined() if payment.needs_review and not payment.is_cancelled:
            return Decision((evolve(payment, is_waiting=False, updated_at=now),))  # that is not what it said before
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), ChargeDeclined()):
            return _refused(payment, event.reason, now, event.calls)
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), ChargeFailed()):
            return _failed(payment, event, now)
        case PaymentStatus.DECLINED, ChargeFailed(is_unknown=True) if payment.is_cancelled:
            return _failed(payment, event, now)  # the attempt was on its way when we withdrew it, and may have charged
        case (
            (PaymentStatus.PENDING | PaymentStatus.UNKNOWN | PaymentStatus.DECLINED),
            ChargeMismatch(),
        ):
            return _require_review(payment, event, now)
        case PaymentStatus.PENDING, ChargeDelayed() if not (payment.is_cancelled or payment.is_waiting):
            return no_change(PaymentDelayed(order_id=payment.order_id))
        case _, (ChargeSucceeded() | ChargeDeclined() | ChargeFailed() | ChargeMismatch() | ChargeDelayed()):
            return no_change()  # an answer to an earlier attempt, settled since
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), OrderCancelled()):
            return _on_order_cancelled(payment, now)
        case PaymentStatus.CAPTURED, OrderCancelled() if not payment.is_cancelled:
            return _to_be_refunded(evolve(payment, is_cancelled=True, updated_at=now))
        case _, OrderCancelled():
            return Decision((evolve(payment, is_cancelled=True, updated_at=now),))
        case PaymentStatus.CAPTURED, RefundSucceeded():
            return _refunded(payment, event.reference, now)
        case PaymentStatus.CAPTURED, RefundFailed():
            return _refund_again(payment, event, now)
        case PaymentStatus.REFUNDED, (RefundSucceeded() | RefundFailed()):
            return no_change()
    raise Unexpected(f"{type(event).__name__} while {payment.status.value}")


def _requested(event: StockReserved, now: datetime) -> Decision:
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


def _charged(payment: Payment, event: ChargeSucceeded, now: datetime) -> Decision:
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
        return _to_be_refunded(payment)
    captured = PaymentCaptured(order_id=payment.order_id, amount=_amount(payment), reference=event.reference)
    return Decision((payment,), (captured,))


def _refused(payment: Payment, reason: str, now: datetime, calls: int = 0) -> Decision:
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


def _failed(payment: Payment, event: ChargeFailed, now: datetime) -> Decision:
    """Ask again later, under the same key; unless the order is off and the gateway has certainly seen nothing."""
    is_unknown = event.is_unknown or payment.status is PaymentStatus.UNKNOWN
    if payment.is_cancelled and not is_unknown:
        return _refused(payment, ORDER_CANCELLED, now, event.calls)
    again = evolve(
        payment,
        status=PaymentStatus.UNKNOWN if is_unknown else PaymentStatus.PENDING,
        attempts=payment.attempts + 1,  # though nothing was sent: a first attempt is not looked up before it charges
        calls=payment.calls + event.calls,
        is_waiting=True,
        updated_at=now,
    )
    later = Scheduled(_request_charge(again), now + timedelta(seconds=event.retry_seconds), _retry_timer(payment))
    if payment.is_cancelled or payment.is_waiting:
        return Decision((again,), (later,))
    return Decision((again,), (later, PaymentDelayed(order_id=payment.order_id)))


def _on_order_cancelled(payment: Payment, now: datetime) -> Decision:
    """Stop a payment whose outcome is open. What is in the worker's hands now will tell us how it ended."""
    if payment.is_cancelled:
        return no_change()
    off = evolve(payment, is_cancelled=True, updated_at=now)
    if payment.needs_review and not payment.is_waiting:
        return Decision((off,), (_request_charge(off),))
    if not payment.is_waiting:
        return Decision((off,))
    if payment.status is PaymentStatus.PENDING:
        never = evolve(off, status=PaymentStatus.DECLINED, reason=ORDER_CANCELLED, is_waiting=False)
        return Decision((never,), (CancelTimer(_retry_timer(payment)),))
    look = evolve(off, is_waiting=False)
    return Decision((look,), (CancelTimer(_retry_timer(payment)), _request_charge(look)))


def _require_review(payment: Payment, event: ChargeMismatch, now: datetime) -> Decision:
    is_first = not payment.needs_review
    aside = evolve(
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
        return Decision((aside,))
    look = Scheduled(_request_charge(aside), now + SECOND_LOOK, _retry_timer(payment))
    return Decision((aside,), (look, PaymentReviewRequired(order_id=payment.order_id, reason=event.reason)))


def _on_gateway_notice(payment: Payment, event: ChargeNotified | DeclineNotified | RefundNotified, now: datetime) -> Decision:
    """Compare what the gateway says by itself with what we know; what fits is as good as its answer to a call."""
    is_settled = payment.status in (PaymentStatus.CAPTURED, PaymentStatus.REFUNDED)
    doubt = None
    if payment.amount is None:
        doubt = "not_asked_for"
    elif event.amount.amount != payment.amount:
        doubt = "wrong_amount"
    elif event.amount.currency != payment.currency:
        doubt = "wrong_currency"
    elif is_settled and event.reference != payment.reference and not isinstance(event, DeclineNotified):
        doubt = "two_charges"
    elif isinstance(event, RefundNotified) and not is_settled:
        doubt = "not_captured"
    elif isinstance(event, RefundNotified) and event.refunded_amount != payment.amount:
        doubt = "partly_refunded"
    if doubt is not None:
        return no_change(NoticeRejected(order_id=payment.order_id, reason=doubt))
    withdrawn = (CancelTimer(_retry_timer(payment)),) if payment.is_waiting else ()
    match payment.status, event:
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN | PaymentStatus.DECLINED), ChargeNotified()):
            charged = ChargeSucceeded(order_id=payment.order_id, reference=event.reference, calls=0)
            decision = _charged(payment, charged, now)
        case ((PaymentStatus.PENDING | PaymentStatus.UNKNOWN), DeclineNotified()) if not payment.needs_review:
            decision = _refused(payment, event.reason, now)
        case PaymentStatus.CAPTURED, RefundNotified():
            decision = _refunded(payment, event.reference, now)
            if not payment.is_cancelled:  # not by us: it counts, and a person should know
                doubted = NoticeRejected(order_id=payment.order_id, reason="refunded_elsewhere")
                return Decision(decision.states, (*decision.events, doubted))
        case PaymentStatus.REFUNDED, RefundNotified() if not payment.is_cancelled:
            # Told again: whoever told it first may have gone before it was put aside.
            return no_change(NoticeRejected(order_id=payment.order_id, reason="refunded_elsewhere"))
        case _:
            return no_change()
    return Decision(decision.states, (*decision.events, *withdrawn))


def _refunded(payment: Payment, reference: str, now: datetime) -> Decision:
    refunded = evolve(payment, status=PaymentStatus.REFUNDED, reason=None, updated_at=now)
    return Decision(
        (refunded,), (PaymentRefunded(order_id=payment.order_id, amount=_amount(payment), reference=reference),)
    )


def _to_be_refunded(payment: Payment) -> Decision:
    assert payment.reference is not None
    return Decision((payment,), (_request_refund(payment, 1),))


def _refund_again(payment: Payment, event: RefundFailed, now: datetime) -> Decision:
    again = evolve(payment, attempts=payment.attempts + event.calls, reason=event.reason, updated_at=now)
    later = Scheduled(_request_refund(again, again.attempts), now + timedelta(seconds=event.retry_seconds))
    return Decision((again,), (later,))


def _request_charge(payment: Payment) -> ChargeRequested:
    return ChargeRequested(
        order_id=payment.order_id,
        amount=_amount(payment),
        attempt=payment.attempts,
        is_wanted=not (payment.is_cancelled or payment.needs_review),
        payment_method=payment.payment_method,
    )


def _request_refund(payment: Payment, attempt: int) -> RefundRequested:
    assert payment.reference is not None
    return RefundRequested(
        order_id=payment.order_id, amount=_amount(payment), reference=payment.reference, attempt=attempt
    )


def _amount(payment: Payment) -> Money:
    """
    Return what the payment is about.

    Raises:
        Unexpected: It is about nothing: cancelled before anybody asked for money.
    """
    if payment.amount is None or payment.currency is None:
        raise Unexpected("an answer about money that nobody asked for")
    return Money(payment.amount, payment.currency)


def _retry_timer(payment: Payment) -> str:
    return f"charge:{payment.order_id}"
