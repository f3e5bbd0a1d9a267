"""The state of inventory: products with their stock, and one reservation per order."""

from __future__ import annotations

__all__ = [
    "ON_HAND_MAX",
    "Product",
    "Reservation",
    "ReservationStatus",
    "etag",
    "metadata",
    "product_table",
    "reservation_table",
]

from datetime import datetime
from enum import StrEnum
from hashlib import blake2b

from attrs import frozen
from sqlalchemy import JSON, BigInteger, CheckConstraint, Column, MetaData, String, Table

from modules.tables import key_type
from modules.values import Line

ON_HAND_MAX = 10**15
"""Most pieces of one product."""


@frozen(kw_only=True, slots=False)
class Product:
    """A product; *reserved* of the *on_hand* pieces are reserved for orders."""

    product_id: str
    name: str | None
    on_hand: int
    reserved: int
    unit_price_amount: int
    currency: str

    @property
    def available(self) -> int:
        return self.on_hand - self.reserved


def etag(product: Product) -> str:
    """
    Return the strong entity tag of *product*: equal for equal representations only.

    It follows from the content, so a reservation costs nothing for it, and a product that is again as a client has read
    it has the tag that the client read.
    """
    content = (
        product.product_id,
        product.name,
        product.on_hand,
        product.reserved,
        product.unit_price_amount,
        product.currency,
    )
    return f'"{blake2b(repr(content).encode(), digest_size=12).hexdigest()}"'


class ReservationStatus(StrEnum):
    HELD = "held"
    REJECTED = "rejected"
    SHIPPED = "shipped"
    RELEASED = "released"


@frozen(kw_only=True, slots=False)
class Reservation:
    """
    The stock reserved for an order.

    Status RELEASED without lines means that the cancellation arrived before the order.
    """

    order_id: str
    status: ReservationStatus
    lines: tuple[Line, ...] = ()

    def is_finished_since(self, before: datetime) -> bool:
        """Return True if no stock is held; the time in the id of the order is the age of the reservation."""
        return self.status is not ReservationStatus.HELD


metadata = MetaData()

product_table = Table(
    "inventory_product",
    metadata,
    Column("product_id", key_type(64), primary_key=True),
    Column("name", String(255)),
    Column("on_hand", BigInteger, nullable=False),
    Column("reserved", BigInteger, nullable=False),
    Column("unit_price_amount", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    CheckConstraint("reserved BETWEEN 0 AND on_hand", name="inventory_product_reserved"),
    CheckConstraint("unit_price_amount >= 0", name="inventory_product_price"),
    sqlite_with_rowid=False,
)

reservation_table = Table(
    "inventory_reservation",
    metadata,
    Column("order_id", key_type(36), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("lines", JSON, nullable=False),
    CheckConstraint("status IN ('held', 'rejected', 'shipped', 'released')", name="inventory_reservation_status"),
    sqlite_with_rowid=False,
)
