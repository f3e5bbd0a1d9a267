"""What payments remembers: one row per order."""

from __future__ import annotations

__all__ = ["Payment", "PaymentStatus", "metadata", "payment_table"]

from datetime import datetime
from enum import StrEnum

from attrs import frozen
from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, DateTime, Integer, MetaData, String, Table

from modules.tables import key_type


class PaymentStatus(StrEnum):
    PENDING = "pending"
    CAPTURED = "captured"
    DECLINED = "declined"
    UNKNOWN = "unknown"
    REFUNDED = "refunded"


@frozen(kw_only=True, slots=False)
class Payment:
    """
    The money of an order.

    Without an amount, declined: the order was cancelled before we were asked for anything. *calls* counts what was
    sent to the gateway, *attempts* how often we set out to; *is_waiting* while the next attempt is in the outbox.
    *reason* says why it is declined, why it was put aside, or why the refund has not succeeded yet.
    """

    order_id: str
    status: PaymentStatus
    amount: int | None = None
    currency: str | None = None
    payment_method: str | None = None
    attempts: int = 0
    calls: int = 0
    reference: str | None = None
    reason: str | None = None
    is_cancelled: bool = False
    is_waiting: bool = False
    updated_at: datetime

    @property
    def needs_review(self) -> bool:
        """True while what the gateway said contradicts what it was asked: it is never charged again then."""
        return self.status is PaymentStatus.UNKNOWN and self.reason is not None


metadata = MetaData()

payment_table = Table(
    "payments_payment",
    metadata,
    Column("order_id", key_type(36), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("amount", BigInteger),
    Column("currency", String(3)),
    Column("payment_method", String(255)),
    Column("attempts", Integer, nullable=False),
    Column("calls", Integer, nullable=False),
    Column("reference", String(255)),
    Column("reason", String(64)),
    Column("is_cancelled", Boolean, nullable=False),
    Column("is_waiting", Boolean, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    CheckConstraint(
        "status IN ('pending', 'captured', 'declined', 'unknown', 'refunded')", name="payments_payment_status"
    ),
    CheckConstraint("status = 'declined' OR amount >= 0", name="payments_payment_amount"),
    CheckConstraint(
        "status NOT IN ('captured', 'refunded') OR reference IS NOT NULL", name="payments_payment_reference"
    ),
    sqlite_with_rowid=False,
)
