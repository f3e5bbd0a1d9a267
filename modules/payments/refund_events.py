"""The events that payments publishes about refunds: they add up to what the ledger has as refunded."""

from __future__ import annotations

__all__ = ["money_of", "refund_failed", "refunds_booked"]

from collections.abc import Sequence

from modules.payments.events import PaymentRefunded, PaymentRefundFailed
from modules.payments.ledger import Refund, RefundStatus
from modules.payments.state import CANCEL, Payment
from modules.values import Money


def refunds_booked(payment: Payment, amount: int, ended: Sequence[Refund]) -> list[PaymentRefunded]:
    """
    Return the events for *amount* more minor units that were refunded.

    Each refund of *ended* that has succeeded has an event of its own, and what is beyond them was refunded at the gateway.
    If they are more than *amount*, an earlier event without an id included some of them, and one event has the difference.
    """
    succeeded = [each for each in ended if each.status is RefundStatus.SUCCEEDED]
    rest = amount - sum(each.amount for each in succeeded)
    if rest < 0:
        one = succeeded[0] if len(succeeded) == 1 else None
        return [_refunded(payment, amount, one)] if amount > 0 else []
    events = [_refunded(payment, each.amount, each) for each in succeeded]
    return [*events, _refunded(payment, rest, None)] if rest else events


def refund_failed(
    payment: Payment, amount: int, reason: str, refund_id: str | None, *, is_final: bool, has_returned: bool = False
) -> PaymentRefundFailed:
    """Return the event for *amount* that was not refunded, or with *has_returned* is not refunded any more."""
    return PaymentRefundFailed(
        order_id=payment.order_id,
        amount=money_of(payment, amount),
        reason=reason or "refund_failed",
        is_final=is_final,
        refund_id=None if refund_id == CANCEL else refund_id,
        has_returned=has_returned,
    )


def money_of(payment: Payment, amount: int) -> Money:
    """Return *amount* minor units in the currency of *payment*, which has one."""
    assert payment.currency is not None
    return Money(amount, payment.currency)


def _refunded(payment: Payment, amount: int, refund: Refund | None) -> PaymentRefunded:
    return PaymentRefunded(
        order_id=payment.order_id,
        amount=money_of(payment, amount),
        reference=(refund.reference if refund is not None else None) or payment.reference or "",
        kept=money_of(payment, payment.kept) if payment.kept else None,
        refund_id=refund.id if refund is not None and refund.id != CANCEL else None,
    )
