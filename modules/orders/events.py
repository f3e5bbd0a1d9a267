"""The events that orders publishes, and the commands and replies of its own routes."""

from __future__ import annotations

__all__ = [
    "CancelRequested",
    "OrderCancelled",
    "OrderConfirmed",
    "OrderCreated",
    "OrderCreatedV1",
    "OrderRefundRequested",
    "OrderSubmitted",
    "OrderTimedOut",
    "OrderUnknown",
    "RefundImpossible",
    "RefundSubmitted",
    "created_v1",
    "created_v2",
]

from attrs import frozen

from bus.subjects import event
from modules.values import Address, Line, Money


@event("orders.created.v2")
class OrderCreated:
    """An order was accepted; without a *shipping_address* the customer collects it at the counter."""

    order_id: str
    customer_id: str
    items: tuple[Line, ...]
    version: str
    shipping_address: Address | None
    payment_method: str | None = None
    payment_customer: str | None = None


@event("orders.created.v1")
class OrderCreatedV1:
    """An order was accepted: the older version, without a shipping address."""

    order_id: str
    customer_id: str
    items: tuple[Line, ...]
    version: str
    payment_method: str | None = None
    payment_customer: str | None = None


@event("orders.confirmed.v1")
class OrderConfirmed:
    """An order is confirmed: its stock is reserved, its payment is captured, and the stock may be shipped."""

    order_id: str
    customer_id: str
    items: tuple[Line, ...]
    total: Money


@event("orders.cancelled.v1")
class OrderCancelled:
    """An order was cancelled: every consumer undoes what it did for the order."""

    order_id: str
    customer_id: str
    items: tuple[Line, ...]
    reason: str


@event("orders.timed_out.v1")
class OrderTimedOut:
    """An order did not complete in time. Orders schedules this event for itself when it accepts the order."""

    order_id: str


@event("orders.refund_requested.v1")
class OrderRefundRequested:
    """*amount* of an order's payment is to be refunded, under the id *refund_id*; *reason* is free text."""

    order_id: str
    refund_id: str
    amount: Money
    reason: str


@frozen(kw_only=True)
class OrderSubmitted:
    """A client placed an order."""

    order_id: str
    customer_id: str
    items: tuple[Line, ...]
    is_express: bool
    payment_method: str | None
    payment_customer: str | None = None
    shipping_address: Address | None = None
    correlation_id: str | None = None


@frozen(kw_only=True)
class CancelRequested:
    """A client cancels an order; *why* is its reason, as free text."""

    order_id: str
    why: str | None


@frozen(kw_only=True)
class RefundSubmitted:
    """
    A client asks to refund *amount* of an order's payment, or *items* at the prices of the order, or else all that is left.

    *refund_id* is a new id, *why* the client's reason, as free text.
    """

    order_id: str
    refund_id: str
    amount: Money | None
    items: tuple[Line, ...]
    why: str


@frozen(kw_only=True)
class RefundImpossible:
    """Reply: the refund is not requested; *code* is stable, *detail* a sentence for the reader."""

    order_id: str
    code: str
    detail: str


@frozen(kw_only=True)
class OrderUnknown:
    """Reply: there is no such order."""

    order_id: str


def created_v1(event: OrderCreated) -> OrderCreatedV1:
    """Return *event* in version 1, which has no shipping address."""
    return OrderCreatedV1(
        order_id=event.order_id,
        customer_id=event.customer_id,
        items=event.items,
        version="v1",
        payment_method=event.payment_method,
        payment_customer=event.payment_customer,
    )


def created_v2(event: OrderCreatedV1) -> OrderCreated:
    """Return *event* in version 2, without a shipping address: the customer collects the order at the counter."""
    return OrderCreated(
        order_id=event.order_id,
        customer_id=event.customer_id,
        items=event.items,
        version="v2",
        shipping_address=None,
        payment_method=event.payment_method,
        payment_customer=event.payment_customer,
    )
