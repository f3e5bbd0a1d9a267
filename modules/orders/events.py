"""What orders says, and what it is told."""

from __future__ import annotations

__all__ = [
    "CancelRequested",
    "OrderCancelled",
    "OrderConfirmed",
    "OrderCreated",
    "OrderSubmitted",
    "OrderTimedOut",
    "OrderUnknown",
]

from attrs import frozen

from bus.contracts import event
from modules.values import Line, Money


@event("orders.created.v1")
class OrderCreated:
    """An order was accepted."""

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


@frozen(kw_only=True)
class CancelRequested:
    """A client wants it cancelled, and may say why."""

    order_id: str
    why: str | None


@frozen(kw_only=True)
class OrderUnknown:
    """Reply: there is no such order."""

    order_id: str
