"""The refunds that a client requests, and their outcome in payments, which decides about them and makes them."""

from __future__ import annotations

__all__ = ["on_payment_refunded", "on_refund_failed", "on_refund_submitted", "with_timeline"]

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from modules.module import Decision, evolve, no_change
from modules.orders.events import OrderRefundRequested, RefundImpossible, RefundSubmitted
from modules.orders.state import Order, Status
from modules.payments.events import PaymentRefunded, PaymentRefundFailed
from modules.values import Line, Money, rfc3339

REFUNDS_MAX = 100
"""How many refunds may be requested for one order."""


class _Impossible(Exception):
    """The refund is not possible."""

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(code)


def on_refund_submitted(order: Order, event: RefundSubmitted, now: datetime) -> Decision:
    """Record what is to be refunded, and ask payments for it; what cannot be refunded is rejected at once."""
    try:
        amount = _amount(order, event)
    except _Impossible as error:
        return no_change(RefundImpossible(order_id=order.order_id, code=error.code, detail=error.detail))
    entry: dict[str, Any] = {
        "refund_id": event.refund_id, "amount": amount, "status": "pending", "reason": event.why, "at": rfc3339(now)
    }  # fmt: skip
    if event.items:
        entry["items"] = [{"product_id": line.product_id, "quantity": line.quantity} for line in event.items]
    money = Money(amount, order.currency or "")
    order = with_timeline(
        order, "orders.refund_requested", now, {"amount": _shown(money), "reason": event.why},
        refunds=(*(order.refunds or ()), entry),
    )  # fmt: skip
    requested = OrderRefundRequested(
        order_id=order.order_id, refund_id=event.refund_id, amount=money, reason=event.why
    )
    return Decision((order,), (requested,), order.is_express)


def on_payment_refunded(order: Order, event: PaymentRefunded, now: datetime) -> Decision:
    """Record that money went back; it may arrive before the capture, and, if the order was cancelled early, without a reservation."""
    asked = _with_entry(order, event.refund_id, status="succeeded", amount=event.amount.amount)
    if asked is None:
        asked = (*(order.refunds or ()), {"amount": event.amount.amount, "status": "succeeded", "at": rfc3339(now)})
    detail = None if event.kept is None else {"amount": _shown(event.amount), "kept": _shown(event.kept)}
    currency = order.currency or event.amount.currency
    return Decision((with_timeline(order, "payments.refunded", now, detail, refunds=asked, currency=currency),), (), order.is_express)


def on_refund_failed(order: Order, event: PaymentRefundFailed, now: datetime) -> Decision:
    """Record that a refund failed finally; one that is tried again stays pending, if a client requested it."""
    if not event.has_returned and _succeeded(order, event.refund_id):
        return no_change()  # it is about an attempt before the one that succeeded, and was delivered late
    status = "failed" if event.is_final else "pending"
    changes = {"failure": event.reason} if event.is_final else {}
    refunds = _with_entry(order, event.refund_id, status=status, **changes)
    # What had been refunded under the id is undone with its entry; an event without an id had the rest of the amount.
    rest = event.amount.amount - _succeeded(order, event.refund_id)
    if event.has_returned and rest > 0:
        refunds = _with_returned(order.refunds if refunds is None else refunds, rest, event.reason)
    if not event.is_final:
        is_changed = refunds is not None and refunds != order.refunds
        return Decision((evolve(order, refunds=refunds, updated_at=now),)) if is_changed else no_change()
    detail = {"amount": _shown(event.amount), "reason": event.reason}
    failed = with_timeline(
        order, "payments.refund_failed", now, detail, refunds=order.refunds if refunds is None else refunds
    )
    return Decision((failed,), (), order.is_express)


def with_timeline(order: Order, event: str, now: datetime, detail: dict[str, Any] | None = None, **changes: Any) -> Order:
    """Return *order* with *changes* and with an entry for *event* at the end of its timeline."""
    entry: dict[str, Any] = {"event": event, "at": rfc3339(now)}
    if detail:
        entry["detail"] = detail
    return evolve(order, updated_at=now, timeline=(*order.timeline, entry), **changes)


def _amount(order: Order, event: RefundSubmitted) -> int:
    """
    Return how many minor units are to be refunded.

    Raises:
        _Impossible: They are more than is left, or nothing was paid.
    """
    if order.status is Status.CANCELLED:
        raise _Impossible("order_cancelled", "The order is cancelled; what is left of its payment is refunded in any case.")
    if not order.is_paid:
        raise _Impossible("not_paid", "The order is not paid.")
    if len(order.refunds or ()) >= REFUNDS_MAX:
        raise _Impossible("too_many_refunds", f"An order has at most {REFUNDS_MAX} refunds.")
    left = order.refundable
    amount = left
    if event.amount is not None:
        if event.amount.currency != order.currency:
            raise _Impossible("wrong_currency", f"The order is paid in {order.currency}.")
        amount = event.amount.amount
    elif event.items:
        amount = _price(order, event.items)
    if amount > left or amount == 0:
        raise _Impossible("exceeds_left", f"Of the payment {left} minor units are left to be refunded.")
    return amount


def _price(order: Order, items: Sequence[Line]) -> int:
    """Return the price of *items*, of which no more can be refunded than was ordered."""
    if order.unit_prices is None:
        raise _Impossible("prices_unknown", "The order was placed before prices were kept; refund an amount.")
    prices = {line.product_id: price for line, price in zip(order.items, order.unit_prices, strict=True)}
    left = {line.product_id: line.quantity for line in order.items}
    for entry in order.refunds or ():
        for item in entry.get("items", ()) if entry["status"] != "failed" else ():
            left[item["product_id"]] -= item["quantity"]
    for line in items:
        left[line.product_id] = left.get(line.product_id, 0) - line.quantity
        if left[line.product_id] < 0:
            raise _Impossible("exceeds_left", f"More of {line.product_id} than is left of the order.")
    return sum(prices[line.product_id] * line.quantity for line in items)


def _succeeded(order: Order, refund_id: str | None) -> int:
    """Return how many minor units were refunded under *refund_id*."""
    return sum(
        entry["amount"]
        for entry in order.refunds or ()
        if refund_id is not None and entry.get("refund_id") == refund_id and entry["status"] == "succeeded"
    )


def _with_entry(order: Order, refund_id: str | None, **changes: Any) -> tuple[dict[str, Any], ...] | None:
    """Return the refunds of *order* with *changes* to the one under *refund_id*; None if there is no such one."""
    if refund_id is None or all(entry.get("refund_id") != refund_id for entry in order.refunds or ()):
        return None
    return tuple(
        {**entry, **changes} if entry.get("refund_id") == refund_id else entry for entry in order.refunds or ()
    )


def _with_returned(entries: Sequence[dict[str, Any]] | None, amount: int, reason: str) -> tuple[dict[str, Any], ...]:
    """Return *entries* after *amount* has come back for *reason*, of those without an id the newest first."""
    left, refunds = amount, []
    for entry in reversed(entries or ()):
        returned = 0 if "refund_id" in entry or entry["status"] != "succeeded" else min(left, entry["amount"])
        left -= returned
        if returned:
            refunds.append({**entry, "amount": returned, "status": "failed", "failure": reason})
        if not returned or returned < entry["amount"]:
            refunds.append({**entry, "amount": entry["amount"] - returned})
    return tuple(reversed(refunds))


def _shown(money: Money) -> dict[str, Any]:
    return {"amount": money.amount, "currency": money.currency}
