"""The state of payments: one row per order."""

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
    The payment of an order.

    Status DECLINED without an amount means that the order was cancelled before a charge was requested. *attempts*
    counts the requests to the payment worker, *calls* the calls that it made to the gateway. *is_waiting* is true while
    the next attempt is scheduled in the outbox. *reason* is the code of the decline, of the mismatch that needs review,
    or of the last failed refund.
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
        """True while the gateway's response contradicts the request; such a payment is never charged again."""
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
