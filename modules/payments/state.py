"""The state of payments: one row per order."""

from __future__ import annotations

__all__ = ["CANCEL", "NO_ANSWER", "NO_LEDGER", "Payment", "PaymentStatus", "metadata", "payment_table"]

from datetime import datetime
from enum import StrEnum

from attrs import frozen
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    text,
)

from modules.payments.ledger import DisputeStatus, Ledger, RefundStatus
from modules.tables import key_type
from modules.values import Address


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
    counts the charge requests to the payment worker, *calls* the calls that it made to the gateway. *is_waiting* is true
    while the next attempt is scheduled in the outbox. *reason* is the code of the decline (with status PENDING: of a soft
    one, which is retried), of the mismatch that needs review, or of a refund that has failed or is missing. *ledger* is None
    while there is one capture and nothing else.
    """

    order_id: str
    status: PaymentStatus
    amount: int | None = None
    currency: str | None = None
    payment_method: str | None = None
    payment_customer: str | None = None
    shipping_address: Address | None = None
    attempts: int = 0
    calls: int = 0
    reference: str | None = None
    reason: str | None = None
    is_cancelled: bool = False
    is_waiting: bool = False
    ledger: Ledger | None = None
    updated_at: datetime

    @property
    def captured(self) -> int:
        """How many minor units the gateway has captured."""
        return (self.amount or 0) if self.status in (PaymentStatus.CAPTURED, PaymentStatus.REFUNDED) else 0

    @property
    def refunded(self) -> int:
        """How many of them were refunded; never more than `captured`, even while two notices contradict each other."""
        if self.ledger is None:  # a payment that was refunded by a release without ledgers
            return self.captured if self.status is PaymentStatus.REFUNDED else 0
        return min(self.captured, self.ledger.refunded)

    @property
    def kept(self) -> int:
        """How many minor units are left: `captured` - `refunded`, never negative."""
        return self.captured - self.refunded

    @property
    def pending(self) -> int:
        """How many of the kept ones are about to be refunded."""
        return 0 if self.ledger is None else min(self.kept, self.ledger.pending)

    @property
    def refundable(self) -> int:
        """How many minor units can still be refunded by a new request."""
        return self.kept - self.pending

    @property
    def dispute(self) -> DisputeStatus | None:
        """The status of the customer's dispute of the charge, or None."""
        return None if self.ledger is None else self.ledger.dispute

    @property
    def refund_status(self) -> str | None:
        """``pending`` while a refund may still succeed, ``failed`` if one is missing, ``succeeded``, or None if there is none."""
        refunds = () if self.ledger is None else self.ledger.refunds
        if any(each.status in (RefundStatus.REQUESTED, RefundStatus.PENDING) and each.reason != NO_ANSWER for each in refunds):
            return "pending"
        own = [each for each in refunds if each.key_number is not None]
        if self.is_open_case or (own and own[-1].status is not RefundStatus.SUCCEEDED and self.kept):
            return "failed"
        return "succeeded" if self.refunded or self.status is PaymentStatus.REFUNDED else None

    @property
    def is_open_case(self) -> bool:
        """True if nothing more happens by itself, and a person has to settle the payment."""
        if self.needs_review:
            return not self.is_waiting
        ledger = self.ledger
        if ledger is None or ledger.keeps_rest or not (self.is_cancelled and self.kept):
            return False
        return self.refundable > 0 or any(each.reason == NO_ANSWER for each in ledger.refunds)

    @property
    def is_declined_softly(self) -> bool:
        """True while a charge that the gateway declined may still be accepted, or is being cancelled at the gateway."""
        return self.status is PaymentStatus.PENDING and self.reason is not None

    @property
    def is_given_up(self) -> bool:
        """True if the charge was declined too often to be tried again."""
        return self.ledger is not None and self.ledger.is_given_up

    @property
    def needs_review(self) -> bool:
        """True while the gateway's response contradicts the request; such a payment is never charged again."""
        return self.status is PaymentStatus.UNKNOWN and self.reason is not None

    def is_finished_since(self, before: datetime) -> bool:
        """
        Return True if the payment is final and waits for nothing, and has not changed since *before*.

        The provider has answered, no refund, dispute or case is open, and no refund has failed finally.
        """
        if self.updated_at >= before or self.is_waiting or self.is_open_case:
            return False
        if self.status in (PaymentStatus.PENDING, PaymentStatus.UNKNOWN):
            return False
        is_owed = self.refund_status == "failed" and not (self.ledger is not None and self.ledger.keeps_rest)
        return not (self.refund_status == "pending" or is_owed or self.dispute is DisputeStatus.OPEN)


NO_LEDGER = Ledger()
CANCEL = "cancel"
"""The id of the refund that the cancellation of the order requests."""

NO_ANSWER = "no_answer"
"""The reason of a refund that was given up although it may still succeed."""

metadata = MetaData()
_HAS_REASON = text("reason IS NOT NULL")

payment_table = Table(
    "payments_payment",
    metadata,
    Column("order_id", key_type(36), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("amount", BigInteger),
    Column("currency", String(3)),
    Column("payment_method", String(255)),
    Column("payment_customer", String(255)),
    Column("shipping_address", JSON),
    Column("attempts", Integer, nullable=False),
    Column("calls", Integer, nullable=False),
    Column("reference", String(255)),
    Column("reason", String(64)),
    Column("is_cancelled", Boolean, nullable=False),
    Column("is_waiting", Boolean, nullable=False),
    Column("ledger", JSON),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    CheckConstraint(
        "status IN ('pending', 'captured', 'declined', 'unknown', 'refunded')", name="payments_payment_status"
    ),
    CheckConstraint("status = 'declined' OR amount >= 0", name="payments_payment_amount"),
    CheckConstraint(
        "status NOT IN ('captured', 'refunded') OR reference IS NOT NULL", name="payments_payment_reference"
    ),
    # Every case for a person has a reason, and a payment that goes well never has one: to keep it costs nothing then.
    Index("payments_payment_with_reason", "order_id", sqlite_where=_HAS_REASON, postgresql_where=_HAS_REASON),
    sqlite_with_rowid=False,
)
