"""The state of orders: one row per order."""

from __future__ import annotations

__all__ = ["Order", "Status", "Timeline", "metadata", "order_table"]

from datetime import datetime
from enum import StrEnum
from typing import Any

from attrs import frozen
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    MetaData,
    String,
    Table,
    text,
)

from modules.tables import key_type
from modules.values import Address, Line

Timeline = tuple[dict[str, Any], ...]
"""Entries ``{"event", "at", "detail"?}`` as the API returns them, oldest first."""


Refunds = tuple[dict[str, Any], ...]
"""
Entries ``{"refund_id"?, "amount", "status", "reason"?, "items"?, "failure"?, "at"}``, oldest first.

*amount* is in minor units, *status* is ``pending``, ``succeeded`` or ``failed``. Without a *refund_id* the refund was not asked
for here: the cancellation of the order caused it, or it was made at the payment provider.
"""


class Status(StrEnum):
    PROCESSING = "processing"
    RESERVED = "reserved"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


@frozen(kw_only=True, slots=False)
class Order:
    """
    An order, from its acceptance on.

    *is_paid* may become true before the status is RESERVED, because the two events arrive in any order. *waiting_for*
    is "payment" while the payment is delayed or under review. *unit_prices* are the prices of *items* in their order, in
    minor units, from the reservation on. *refunds* is None until there is one.
    """

    order_id: str
    customer_id: str
    status: Status
    reason: str | None = None
    items: tuple[Line, ...]
    total_amount: int | None = None
    currency: str | None = None
    is_express: bool
    payment_method: str | None = None
    payment_customer: str | None = None
    shipping_address: Address | None = None
    correlation_id: str | None = None
    unit_prices: tuple[int, ...] | None = None
    refunds: Refunds | None = None
    is_paid: bool = False
    waiting_for: str | None = None
    created_at: datetime
    updated_at: datetime
    timeline: Timeline

    @property
    def refunded(self) -> int:
        """The minor units that were refunded."""
        return sum(each["amount"] for each in self.refunds or () if each["status"] == "succeeded")

    @property
    def refundable(self) -> int:
        """The minor units whose refund can still be requested: they are neither refunded nor requested."""
        asked = sum(each["amount"] for each in self.refunds or () if each["status"] != "failed")
        return max(0, (self.total_amount or 0) - asked) if self.is_paid else 0

    @property
    def is_final(self) -> bool:
        """True once the order is confirmed or cancelled; a time-out no longer has an effect then."""
        return self.status in (Status.CONFIRMED, Status.CANCELLED)

    def is_finished_since(self, before: datetime) -> bool:
        """Return True if the order is final, no refund is under way, and it has not changed since *before*."""
        is_refunded = all(each["status"] != "pending" for each in self.refunds or ())
        return self.is_final and self.waiting_for is None and is_refunded and self.updated_at < before


metadata = MetaData()


def _index_of_present(name: str, column: str) -> Index:
    """Return an index of the orders that have a value in *column*."""
    present = text(f"{column} IS NOT NULL")
    return Index(f"orders_order_by_{name}", column, "order_id", sqlite_where=present, postgresql_where=present)


order_table = Table(
    "orders_order",
    metadata,
    Column("order_id", key_type(36), primary_key=True),
    Column("customer_id", key_type(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", String(32)),
    Column("items", JSON, nullable=False),
    Column("total_amount", BigInteger),
    Column("currency", String(3)),
    Column("is_express", Boolean, nullable=False),
    Column("payment_method", String(255)),
    Column("payment_customer", String(255)),
    Column("shipping_address", JSON),
    Column("correlation_id", key_type(128)),
    Column("unit_prices", JSON),
    Column("refunds", JSON),
    Column("is_paid", Boolean, nullable=False),
    Column("waiting_for", String(16)),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Column("timeline", JSON, nullable=False),
    CheckConstraint("status IN ('processing', 'reserved', 'confirmed', 'cancelled')", name="orders_order_status"),
    CheckConstraint("(status = 'cancelled') = (reason IS NOT NULL)", name="orders_order_reason"),
    # An order's id begins with its time, so "newest first" reads these indexes backwards.
    Index("orders_order_by_status", "status", "order_id"),
    Index("orders_order_by_customer", "customer_id", "order_id"),
    *(_index_of_present(name, column) for name, column in (
        ("correlation", "correlation_id"), ("reason", "reason"), ("waiting", "waiting_for")
    )),
    # Holds two values for a range of pages, which finds what has changed lately. The single process of SQLite needs none.
    Index(
        "orders_order_by_change", "updated_at",
        postgresql_using="brin", postgresql_with={"autosummarize": True, "pages_per_range": 32},
    ).ddl_if(dialect="postgresql"),
    sqlite_with_rowid=False,
)  # fmt: skip
