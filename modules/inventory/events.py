"""What inventory says, and what it is told."""

from __future__ import annotations

__all__ = [
    "BelowReserved",
    "PricedLine",
    "ProductSet",
    "ProductUnknown",
    "Restocked",
    "Shortage",
    "StockRejected",
    "StockReleased",
    "StockReserved",
]

from attrs import frozen

from bus.subjects import event
from modules.values import Line, Money


@frozen
class PricedLine:
    """So many of one product, and what one of them costs."""

    product_id: str
    quantity: int
    unit_price: Money


@frozen
class Shortage:
    """A line that could not be held; nothing is available of a product that nobody knows."""

    product_id: str
    requested: int
    available: int


@event("inventory.reserved.v1")
class StockReserved:
    """All lines of an order are held, at these prices."""

    order_id: str
    lines: tuple[PricedLine, ...]
    total: Money
    payment_method: str | None = None


@event("inventory.rejected.v1")
class StockRejected:
    """Nothing is held for an order, and these lines are why."""

    order_id: str
    reason: str
    shortages: tuple[Shortage, ...]


@event("inventory.released.v1")
class StockReleased:
    """What an order held, or had been sent, is back on the shelf."""

    order_id: str
    lines: tuple[Line, ...]


@frozen(kw_only=True)
class ProductSet:
    """Somebody counted a product, or priced it; *name* None leaves the name it has."""

    product_id: str
    on_hand: int
    unit_price: Money
    name: str | None


@frozen(kw_only=True)
class Restocked:
    """More of a product came in."""

    product_id: str
    quantity: int


@frozen(kw_only=True)
class ProductUnknown:
    """Reply: there is no such product."""

    product_id: str


@frozen(kw_only=True)
class BelowReserved:
    """Reply: the count would be less than what is held for orders."""

    product_id: str
    reserved: int
