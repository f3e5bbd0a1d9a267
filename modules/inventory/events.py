"""The events that inventory publishes, and the commands and replies of its own routes."""

from __future__ import annotations

__all__ = [
    "AboveMaximum",
    "BelowReserved",
    "PriceRejected",
    "PricedLine",
    "ProductChanged",
    "ProductPatched",
    "ProductSet",
    "ProductUnknown",
    "Shortage",
    "StockAdjusted",
    "StockRejected",
    "StockReleased",
    "StockReserved",
]

from attrs import frozen

from bus.subjects import event
from modules.values import UNCONDITIONAL, Address, Line, Money, Precondition, PriceFault, value


@value
class PricedLine:
    """A quantity of one product and its unit price."""

    product_id: str
    quantity: int
    unit_price: Money


@frozen
class Shortage:
    """An order line that exceeds the stock; *available* is 0 for an unknown product."""

    product_id: str
    requested: int
    available: int


@event("inventory.reserved.v1")
class StockReserved:
    """The stock for all lines of an order is reserved, at the given prices."""

    order_id: str
    lines: tuple[PricedLine, ...]
    total: Money
    payment_method: str | None = None
    payment_customer: str | None = None
    shipping_address: Address | None = None


@event("inventory.rejected.v1")
class StockRejected:
    """No stock was reserved for an order; *shortages* lists the lines that caused it, if any did."""

    order_id: str
    reason: str
    shortages: tuple[Shortage, ...]


@event("inventory.released.v1")
class StockReleased:
    """The stock that was reserved for a cancelled order, or shipped with it, is available again."""

    order_id: str
    lines: tuple[Line, ...]


@frozen(kw_only=True)
class ProductSet:
    """A client sets the stock and the price of a product; a *name* of None keeps the current name."""

    product_id: str
    on_hand: int
    unit_price: Money
    name: str | None
    precondition: Precondition = UNCONDITIONAL


@frozen(kw_only=True)
class ProductPatched:
    """A client sets the price, the name or both; None keeps the current one. The stock stays as it is."""

    product_id: str
    unit_price: Money | None
    name: str | None
    precondition: Precondition = UNCONDITIONAL


@frozen(kw_only=True)
class StockAdjusted:
    """A client adds *quantity*, which may be negative, to the stock of a product: a delivery, a loss, a count."""

    product_id: str
    quantity: int
    precondition: Precondition = UNCONDITIONAL


@frozen(kw_only=True)
class ProductUnknown:
    """Reply: there is no such product."""

    product_id: str


@frozen(kw_only=True)
class ProductChanged:
    """Reply: the precondition does not hold for the product as it is now."""

    product_id: str


@frozen(kw_only=True)
class BelowReserved:
    """Reply: the new stock would be less than the *reserved* quantity."""

    product_id: str
    reserved: int


@frozen(kw_only=True)
class PriceRejected:
    """Reply: no payment can be made in the new price; *fault* is the reason."""

    product_id: str
    fault: PriceFault


@frozen(kw_only=True)
class AboveMaximum:
    """Reply: the new stock would be more than a product can have."""

    product_id: str
