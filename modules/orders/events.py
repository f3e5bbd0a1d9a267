"""What orders says, and what it is told."""

from __future__ import annotations

__all__ = [
    "CancelRequested",
    "OrderCancelled",
    "OrderConfirmed",
    "OrderCreated",
    "OrderCreatedV1",
    "OrderSubmitted",
    "OrderTimedOut",
    "OrderUnknown",
    "created_v1",
    "created_v2",
]

from attrs import frozen

from bus.subjects import event
from modules.values import Address, Line, Money


@event("orders.created.v2")
class OrderCreated:
    """An order was accepted; without a *shipping_address* it is collected at the counter."""

    order_id: str
    customer_id: str
    items: tuple[Line, ...]
    version: str
    shipping_address: Address | None
    payment_method: str | None = None


@event("orders.created.v1")
class OrderCreatedV1:
    """An order was accepted, in the days when every order was collected at the counter."""

    order_id: str
    customer_id: str
    items: tuple[Line, ...]
    version: str
    payment_method: str | None = None


@event("orders.confirmed.v1")
class OrderConfirmed:
    """Its stock is held and its money taken: the stock may leave."""

    order_id: str
    customer_id: str
    items: tuple[Line, ...]
    total: Money


@event("orders.cancelled.v1")
class OrderCancelled:
    """It is off: whoever did something for it undoes it."""

    order_id: str
    customer_id: str
    items: tuple[Line, ...]
    reason: str


@event("orders.timed_out.v1")
class OrderTimedOut:
    """Its time is up. Orders says it to itself, in advance."""

    order_id: str


@frozen(kw_only=True)
class OrderSubmitted:
    """A client placed an order."""

    order_id: str
    customer_id: str
    items: tuple[Line, ...]
    is_express: bool
    payment_method: str | None
    shipping_address: Address | None = None


@frozen(kw_only=True)
class CancelRequested:
    """A client wants it cancelled, and may say why."""

    order_id: str
    why: str | None


@frozen(kw_only=True)
class OrderUnknown:
    """Reply: there is no such order."""

    order_id: str


def created_v1(event: OrderCreated) -> OrderCreatedV1:
    """Return *event* for those who know nothing of addresses."""
    return OrderCreatedV1(
        order_id=event.order_id,
        customer_id=event.customer_id,
        items=event.items,
        version="v1",
        payment_method=event.payment_method,
    )


def created_v2(event: OrderCreatedV1) -> OrderCreated:
    """Return *event* as we say it today: whoever could give no address collects at the counter."""
    return OrderCreated(
        order_id=event.order_id,
        customer_id=event.customer_id,
        items=event.items,
        version="v2",
        shipping_address=None,
        payment_method=event.payment_method,
    )
