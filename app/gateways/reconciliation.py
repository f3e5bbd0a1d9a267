"""The provider's list and our own books, side by side. What is compared is the money; nothing is changed."""

from __future__ import annotations

__all__ = ["Difference", "Report", "compare"]

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from typing import Any

from attrs import field, frozen

from app.gateways.port import ChargeRecord
from bus.ids import time_of_id
from modules.payments.state import Payment, PaymentStatus
from modules.values import Money, rfc3339

TAKEN = (PaymentStatus.CAPTURED, PaymentStatus.REFUNDED)


@frozen
class Difference:
    """
    One thing that the two do not agree about.

    *kind* is ``missing`` (we have it as taken, the provider has not), ``extra`` (the provider has taken money that we do
    not know of), ``amount`` or ``refunded`` (both have it, and differ in how much was taken, or went back).
    """

    kind: str
    order_id: str | None
    reference: str | None
    ours: Mapping[str, Any] | None
    theirs: Mapping[str, Any] | None


@frozen
class Report:
    """What was compared, and what differs."""

    payments: int
    charges: int
    differences: list[Difference] = field(factory=list)


async def compare(ours: Iterable[Payment], theirs: AsyncIterator[ChargeRecord], since: datetime, until: datetime) -> Report:
    """
    Compare what belongs to orders placed from *since* until *until*.

    *ours* are the payments of just these orders. *theirs* may hold more: a charge is made a while after its order was
    placed. A charge that names no order counts by its own time.
    """
    payments = {payment.order_id: payment for payment in ours}
    by_order: dict[str, list[ChargeRecord]] = {order_id: [] for order_id in payments}
    differences = []
    charges = 0
    async for record in theirs:
        placed = time_of_id(record.order_id)
        if not since <= (placed or record.created_at) < until:
            continue
        charges += 1
        if record.order_id in by_order:
            by_order[record.order_id].append(record)
        elif _kept(record):
            differences.append(_difference("extra", None, record))
    for order_id, payment in payments.items():
        differences += _compared(payment, by_order[order_id])
    return Report(len(payments), charges, differences)


def _compared(payment: Payment, records: list[ChargeRecord]) -> list[Difference]:
    differences = []
    mine = None
    for record in records:
        if payment.status in TAKEN and record.is_captured and record.reference == payment.reference:
            mine = record
        elif _kept(record):
            differences.append(_difference("extra", payment, record))
    if payment.status not in TAKEN or not payment.amount:
        return differences
    if mine is None:
        return [*differences, _difference("missing", payment, None)]
    if mine.amount != Money(payment.amount, payment.currency or ""):
        differences.append(_difference("amount", payment, mine))
    if mine.refunded_amount != _refunded(payment):
        differences.append(_difference("refunded", payment, mine))
    return differences


def _kept(record: ChargeRecord) -> bool:
    """Tell whether the provider has money of it that did not go back."""
    return record.is_captured and record.refunded_amount < record.amount.amount


def _refunded(payment: Payment) -> int:
    return (payment.amount or 0) if payment.status is PaymentStatus.REFUNDED else 0


def _difference(kind: str, payment: Payment | None, record: ChargeRecord | None) -> Difference:
    ours = theirs = None
    if payment is not None:
        ours = {
            "status": payment.status.value,
            "amount": payment.amount,
            "currency": payment.currency,
            "refunded": _refunded(payment),
            "reference": payment.reference,
        }
    if record is not None:
        theirs = {
            "amount": record.amount.amount,
            "currency": record.amount.currency,
            "refunded": record.refunded_amount,
            "reference": record.reference,
            "created_at": rfc3339(record.created_at),
        }
    order_id = payment.order_id if payment is not None else record.order_id if record is not None else None
    reference = record.reference if record is not None else payment.reference if payment is not None else None
    return Difference(kind, order_id, reference, ours, theirs)
