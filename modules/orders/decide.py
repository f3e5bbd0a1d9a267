"""
The state machine of an order.

    PROCESSING --stock reserved--> RESERVED --payment captured--> CONFIRMED
        \\_______________________________\\_________________________/
                         rejected, declined, timed out, cancelled --> CANCELLED

Events arrive in any order. The payment may be captured before the reservation arrives: the order then records that it
is paid, and is confirmed when the reservation follows. An event about a cancelled order changes nothing but its
timeline, because its producer consumes the cancellation, too, and undoes what it did.
"""

from __future__ import annotations

__all__ = ["decide", "keys"]

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from bus.subjects import Event
from modules.inventory.events import StockRejected, StockReleased, StockReserved
from modules.module import CancelTimer, Decision, Key, Scheduled, Unexpected, evolve, no_change
from modules.orders.events import (
    CancelRequested,
    OrderCancelled,
    OrderConfirmed,
    OrderCreated,
    OrderSubmitted,
    OrderTimedOut,
    OrderUnknown,
    RefundSubmitted,
)
from modules.orders.refunds import on_payment_refunded, on_refund_failed, on_refund_submitted, with_timeline
from modules.orders.state import Order, Status
from modules.payments.events import (
    PaymentCaptured,
    PaymentDeclined,
    PaymentDelayed,
    PaymentRefunded,
    PaymentRefundFailed,
    PaymentReviewRequired,
)
from modules.values import Line, Money, rfc3339


def keys(event: Event) -> tuple[Key, ...]:
    """Return the key of the one order that *event* is about."""
    return ((Order, event.order_id),)


def decide(states: Sequence[Order | None], event: Event, now: datetime, *, timeout: timedelta) -> Decision:
    """
    Return what follows from *event* for the order; a new order is cancelled after *timeout*.

    Raises:
        Unexpected: The state machine has no transition for *event* in this state.
    """
    (order,) = states
    if order is None:
        match event:
            case OrderSubmitted():
                return _accepted(event, now, timeout)
            case CancelRequested() | RefundSubmitted():
                return no_change(OrderUnknown(order_id=event.order_id))
        raise Unexpected(f"{type(event).__name__} for an order that does not exist")

    now = max(now, order.updated_at)  # the process that decided before may have a clock that is ahead
    match order.status, event:
        case Status.PROCESSING, StockReserved():
            held = with_timeline(
                order, "inventory.reserved", now,
                status=Status.RESERVED, total_amount=event.total.amount, currency=event.total.currency,
                unit_prices=tuple(line.unit_price.amount for line in event.lines),
            )  # fmt: skip
            return _confirmed(held, now) if order.is_paid else _changed(held)
        case Status.PROCESSING, StockRejected():
            return _cancelled(order, event.reason, now, {"shortages": [_shortage(s) for s in event.shortages]})
        case Status.PROCESSING, PaymentCaptured():
            return _changed(evolve(order, is_paid=True, waiting_for=None, updated_at=now))
        case Status.RESERVED, PaymentCaptured():
            return _confirmed(order, now)
        case ((Status.PROCESSING | Status.RESERVED), PaymentDeclined()):
            return _cancelled(order, "payment_declined", now, {"reason": event.reason})
        case ((Status.PROCESSING | Status.RESERVED), PaymentDelayed()) if (
            not order.is_paid and order.waiting_for is None
        ):
            return _changed(with_timeline(order, "payments.delayed", now, waiting_for="payment"))
        case ((Status.PROCESSING | Status.RESERVED), PaymentReviewRequired(reason=reason)) if not order.is_paid:
            return _changed(with_timeline(order, "payments.put_aside", now, {"reason": reason}, waiting_for="payment"))
        case ((Status.PROCESSING | Status.RESERVED), OrderTimedOut()):
            return _cancelled(order, "payment_unavailable" if order.waiting_for == "payment" else "timed_out", now)
        case ((Status.PROCESSING | Status.RESERVED | Status.CONFIRMED), CancelRequested(why=why)):
            return _cancelled(order, "requested", now, None if why is None else {"reason": why})
        case Status.CANCELLED, StockReleased():
            return _changed(with_timeline(order, "inventory.released", now))
        case _, PaymentRefunded():
            return on_payment_refunded(order, event, now)
        case _, PaymentRefundFailed():
            return on_refund_failed(order, event, now)
        case _, RefundSubmitted():
            return on_refund_submitted(order, event, now)
        case Status.CANCELLED, _:
            return no_change()
        case ((Status.RESERVED | Status.CONFIRMED), (StockReserved() | PaymentDelayed() | OrderTimedOut())):
            return no_change()  # stale events
        case Status.CONFIRMED, (PaymentCaptured() | PaymentReviewRequired()):
            return no_change()
        case Status.PROCESSING | Status.RESERVED, (PaymentDelayed() | PaymentReviewRequired()):
            return no_change()
    raise Unexpected(f"{type(event).__name__} while {order.status.value}")


def _accepted(event: OrderSubmitted, now: datetime, timeout: timedelta) -> Decision:
    items = _summed(event.items)
    order = Order(
        order_id=event.order_id,
        customer_id=event.customer_id,
        status=Status.PROCESSING,
        items=items,
        is_express=event.is_express,
        payment_method=event.payment_method,
        payment_customer=event.payment_customer,
        shipping_address=event.shipping_address,
        correlation_id=event.correlation_id,
        created_at=now,
        updated_at=now,
        timeline=({"event": "orders.created", "at": rfc3339(now)},),
    )
    created = OrderCreated(
        order_id=order.order_id,
        customer_id=order.customer_id,
        items=items,
        version="v2",
        shipping_address=event.shipping_address,
        payment_method=event.payment_method,
        payment_customer=event.payment_customer,
    )
    timed_out = Scheduled(OrderTimedOut(order_id=order.order_id), now + timeout, _timer(order))
    return Decision((order,), (created, timed_out), order.is_express)


def _confirmed(order: Order, now: datetime) -> Decision:
    assert order.total_amount is not None
    assert order.currency is not None
    total = Money(order.total_amount, order.currency)
    order = with_timeline(order, "orders.confirmed", now, status=Status.CONFIRMED, is_paid=True, waiting_for=None)
    confirmed = OrderConfirmed(
        order_id=order.order_id,
        customer_id=order.customer_id,
        items=order.items,
        total=total,
    )
    return Decision((order,), (confirmed, CancelTimer(_timer(order))), order.is_express)


def _cancelled(order: Order, reason: str, now: datetime, detail: dict[str, Any] | None = None) -> Decision:
    was_final = order.is_final
    order = with_timeline(
        order, "orders.cancelled", now, {"reason": reason} | ({"detail": detail} if detail else {}),
        status=Status.CANCELLED, reason=reason, waiting_for=None,
    )  # fmt: skip
    cancelled = OrderCancelled(order_id=order.order_id, customer_id=order.customer_id, items=order.items, reason=reason)
    emitted = (cancelled,) if was_final else (cancelled, CancelTimer(_timer(order)))
    return Decision((order,), emitted, order.is_express)


def _changed(order: Order) -> Decision:
    return Decision((order,), (), order.is_express)


def _summed(items: Sequence[Line]) -> tuple[Line, ...]:
    """Return one line per product with the sum of its quantities, in the order of first appearance."""
    if len(items) == 1:
        return tuple(items)
    quantities: dict[str, int] = {}
    for line in items:
        quantities[line.product_id] = quantities.get(line.product_id, 0) + line.quantity
    return tuple(Line(product_id, quantity) for product_id, quantity in quantities.items())


def _shortage(shortage: Any) -> dict[str, Any]:
    return {"product_id": shortage.product_id, "requested": shortage.requested, "available": shortage.available}


def _timer(order: Order) -> str:
    return f"timeout:{order.order_id}"
