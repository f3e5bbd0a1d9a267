"""How a person closes the case of a payment, where nothing more happens by itself."""

from __future__ import annotations

__all__ = ["SETTLED", "on_settle"]

from datetime import datetime

import attrs

from modules.module import Decision, evolve, no_change
from modules.payments.charges import captured, declined
from modules.payments.events import ChargeSucceeded, SettleImpossible, SettleRequested
from modules.payments.ledger import Refund, RefundStatus, Settlement, with_line
from modules.payments.refunds import concluded
from modules.payments.state import NO_LEDGER, Payment, PaymentStatus
from modules.values import rfc3339

SETTLED = "settled"
"""
The reference of a charge that only the person knows, until a notice of the gateway names it, and the reason of a decline that
the person decided.
"""


def on_settle(payment: Payment, event: SettleRequested, now: datetime) -> Decision:
    """
    Close the case with the outcome that the person found at the provider, and publish what follows for the order.

    It records where the money is; it moves none. Where that leaves something to refund for a cancelled order, as
    ``captured`` does for a charge that was under review, the refund is requested.
    """
    if not payment.is_open_case:
        return _rejected(payment, "no_case", "Only a payment that waits for a person can be settled.")
    keeps_rest = event.outcome == "captured" and not payment.needs_review
    settlement = Settlement(outcome=event.outcome, reason=event.why, at=rfc3339(now), keeps_rest=keeps_rest)
    settled = evolve(payment, ledger=attrs.evolve(payment.ledger or NO_LEDGER, settled=settlement))
    if payment.needs_review:
        return _after_review(payment, settled, event, now)
    if event.outcome == "declined":
        return _rejected(payment, "is_captured", "The money was captured; the outcome is captured or refunded.")
    return concluded(payment, _given_back(settled, now) if event.outcome == "refunded" else settled, now)


def _after_review(payment: Payment, settled: Payment, event: SettleRequested, now: datetime) -> Decision:
    """Return the decision for a payment of which it was not known whether the money was captured."""
    match event.outcome:
        case "declined":
            return declined(settled, SETTLED, now)
        case "captured":
            if payment.is_cancelled and payment.reference is None:
                return _rejected(payment, "no_reference", "It cannot be refunded without the reference of its charge.")
            charged = ChargeSucceeded(order_id=payment.order_id, reference=payment.reference or SETTLED, calls=0)
            return captured(settled, charged, now)
    reference = payment.reference or SETTLED
    refunded = _given_back(evolve(settled, status=PaymentStatus.CAPTURED, reference=reference), now)
    if payment.is_cancelled:
        return concluded(payment, refunded, now)
    # The order still waits for its payment: to orders it is declined, so that the order is cancelled.
    to_orders = declined(settled, SETTLED, now).events
    return Decision((evolve(refunded, status=PaymentStatus.REFUNDED, reason=None, updated_at=now),), to_orders)


def _given_back(payment: Payment, now: datetime) -> Payment:
    """Return *payment* after everything that is left of it was given back, in a way that the gateway does not report."""
    line = Refund(amount=payment.kept, status=RefundStatus.SUCCEEDED, at=rfc3339(now), reason=SETTLED)
    return evolve(payment, ledger=with_line(payment.ledger or NO_LEDGER, line))


def _rejected(payment: Payment, code: str, detail: str) -> Decision:
    return no_change(SettleImpossible(order_id=payment.order_id, code=code, detail=detail))
