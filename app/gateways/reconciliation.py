"""Compare the provider's list of charges with the payments module's own rows. It compares money, and changes nothing."""

from __future__ import annotations

__all__ = ["Difference", "Report", "compare"]

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from typing import Any

from attrs import field, frozen

from app.gateways.port import ChargeRecord
from bus.ids import time_of_id
from modules.payments.ledger import DisputeStatus
from modules.payments.state import Payment, PaymentStatus
from modules.values import Money, rfc3339

CAPTURED_STATUSES = (PaymentStatus.CAPTURED, PaymentStatus.REFUNDED)


@frozen
class Difference:
    """
    One difference between our payments and the provider's charges.

    *kind* is ``missing`` (we have the payment as captured, the provider does not), ``extra`` (the provider has captured
    money that we have no payment for), ``amount`` or ``refunded`` (both have it, with another amount captured or refunded),
    or ``disputed`` (the customer disputes the charge, or the shop has lost the dispute, whether our payment shows it or not).
    """

    kind: str
    order_id: str | None
    reference: str | None
    ours: Mapping[str, Any] | None
    theirs: Mapping[str, Any] | None


@frozen
class Report:
    """How many payments and charges were compared, and how they differ."""

    payments: int
    charges: int
    differences: list[Difference] = field(factory=list)


async def compare(ours: Iterable[Payment], theirs: AsyncIterator[ChargeRecord], since: datetime, until: datetime) -> Report:
    """
    Compare the payments and charges of orders placed from *since* until *until*.

    *ours* holds the payments of exactly these orders. *theirs* may hold more: a charge is made some time after its order
    was placed. A charge that names no order is included by its own time.
    """
    payments = {payment.order_id: payment for payment in ours}
    records: dict[str, list[ChargeRecord]] = {order_id: [] for order_id in payments}
    differences = []
    charges = 0
    async for record in theirs:
        placed_at = time_of_id(record.order_id)
        if not since <= (placed_at or record.created_at) < until:
            continue
        charges += 1
        if record.order_id in records:
            records[record.order_id].append(record)
        elif _holds_money(record):
            differences.append(_difference("extra", None, record))
    for order_id, payment in payments.items():
        differences += _compare_payment(payment, records[order_id])
    return Report(len(payments), charges, differences)


def _compare_payment(payment: Payment, records: list[ChargeRecord]) -> list[Difference]:
    """Return how *payment* differs from *records*, the provider's charges for its order."""
    differences = []
    match = None
    is_captured = payment.status in CAPTURED_STATUSES
    for record in records:
        if is_captured and record.is_captured and record.reference == payment.reference:
            match = record
        elif _holds_money(record):
            differences.append(_difference("extra", payment, record))
    if not is_captured or not payment.amount:
        return differences
    if match is None:
        return [*differences, _difference("missing", payment, None)]
    if _is_settled(payment) and not _holds_money(match):
        return differences  # a person has found another amount, and has given it back
    if match.amount != Money(payment.amount, payment.currency or ""):
        differences.append(_difference("amount", payment, match))
    # A refund that we have as pending may exist at the provider already, or not yet.
    if not payment.refunded <= match.refunded_amount <= payment.refunded + payment.pending:
        differences.append(_difference("refunded", payment, match))
    if _is_disputed(payment, match):
        differences.append(_difference("disputed", payment, match))
    return differences


def _is_disputed(payment: Payment, record: ChargeRecord) -> bool:
    """Return whether the charge is disputed or was lost; the provider's list may not show that a dispute was won."""
    if payment.dispute is not None:
        return payment.dispute is not DisputeStatus.WON or record.dispute == DisputeStatus.LOST
    return record.dispute in (DisputeStatus.OPEN, DisputeStatus.LOST)


def _is_settled(payment: Payment) -> bool:
    return payment.kept == 0 and payment.ledger is not None and payment.ledger.settled is not None


def _holds_money(record: ChargeRecord) -> bool:
    """Return whether the provider has captured money for *record* that was not refunded."""
    return record.is_captured and record.refunded_amount < record.amount.amount


def _difference(kind: str, payment: Payment | None, record: ChargeRecord | None) -> Difference:
    ours = theirs = None
    if payment is not None:
        ours = {
            "status": payment.status.value,
            "amount": payment.amount,
            "currency": payment.currency,
            "refunded": payment.refunded,
            "pending": payment.pending,
            "dispute": payment.dispute,
            "reference": payment.reference,
        }
    if record is not None:
        theirs = {
            "amount": record.amount.amount,
            "currency": record.amount.currency,
            "refunded": record.refunded_amount,
            "dispute": record.dispute,
            "reference": record.reference,
            "created_at": rfc3339(record.created_at),
        }
    order_id = payment.order_id if payment is not None else record.order_id if record is not None else None
    reference = record.reference if record is not None else payment.reference if payment is not None else None
    return Difference(kind, order_id, reference, ours, theirs)
