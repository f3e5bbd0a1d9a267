"""Events by hand, for the tests of the projections: what happened to an order, and when."""

from __future__ import annotations

__all__ = ["Happened", "cancelled", "captured", "confirmed", "created", "declined", "paid_order", "refund_returned", "refunded", "rejected", "reserved"]

from collections.abc import Sequence
from itertools import count
from typing import Any

from attrs import field, frozen

_numbers = count(1)

Lines = Sequence[tuple[str, int, int]]
"""Product, quantity and unit price in minor units."""


@frozen
class Happened:
    """An event: *at* is a time in UTC, ``2026-03-02 10:00:00``."""

    subject: str
    at: str
    data: dict[str, Any]
    id: str = field(factory=lambda: f"e-{next(_numbers):06}")

    @property
    def time(self) -> str:
        """The time in RFC 3339."""
        return self.at.replace(" ", "T") + "Z"


def _id(order: int) -> str:
    return f"0192f0c1-2b3c-7d4e-8f50-{order:012}"


def _items(lines: Lines) -> list[dict[str, Any]]:
    return [{"product_id": product, "quantity": quantity} for product, quantity, _ in lines]


def _money(amount: int, currency: str) -> dict[str, Any]:
    return {"amount": amount, "currency": currency}


ONE: Lines = (("SKU-1", 1, 1000),)


def created(order: int, at: str, *, customer: str = "c-1", lines: Lines = ONE) -> Happened:
    """An order was placed."""
    data = {"customer_id": customer, "items": _items(lines), "version": "v2", "shipping_address": None}
    return Happened("orders.created.v2", at, {"order_id": _id(order), **data})


def reserved(order: int, at: str, *, lines: Lines = ONE, currency: str = "EUR") -> Happened:
    """Its stock was reserved."""
    priced = [
        {"product_id": product, "quantity": quantity, "unit_price": _money(price, currency)}
        for product, quantity, price in lines
    ]
    return Happened("inventory.reserved.v1", at, {"order_id": _id(order), "lines": priced, "total": _total(lines, currency)})


def rejected(order: int, at: str, *shortages: tuple[str, int, int], reason: str = "insufficient_stock") -> Happened:
    """Its stock was not reserved; *shortages* are product, requested, available."""
    names = ("product_id", "requested", "available")
    data = {"reason": reason, "shortages": [dict(zip(names, each, strict=True)) for each in shortages]}
    return Happened("inventory.rejected.v1", at, {"order_id": _id(order), **data})


def captured(order: int, at: str, amount: int = 1000, currency: str = "EUR") -> Happened:
    """Its payment was captured."""
    data = {"order_id": _id(order), "amount": _money(amount, currency), "reference": f"r-{order}"}
    return Happened("payments.captured.v1", at, data)


def declined(order: int, at: str, reason: str, amount: int = 1000, currency: str = "EUR") -> Happened:
    """Its payment was declined."""
    data = {"order_id": _id(order), "amount": _money(amount, currency), "reason": reason}
    return Happened("payments.declined.v1", at, data)


def refunded(order: int, at: str, amount: int, currency: str = "EUR") -> Happened:
    """A part of its payment, or the whole, was refunded."""
    data = {"order_id": _id(order), "amount": _money(amount, currency), "reference": f"r-{order}"}
    return Happened("payments.refunded.v1", at, data)


def refund_returned(order: int, at: str, amount: int, currency: str = "EUR") -> Happened:
    """A refund failed after it had been reported."""
    data = {"order_id": _id(order), "amount": _money(amount, currency), "reason": "lost", "is_final": True, "has_returned": True}
    return Happened("payments.refund_failed.v1", at, data)


def confirmed(order: int, at: str, *, customer: str = "c-1", lines: Lines = ONE, currency: str = "EUR") -> Happened:
    """It was confirmed."""
    data = {"customer_id": customer, "items": _items(lines), "total": _total(lines, currency)}
    return Happened("orders.confirmed.v1", at, {"order_id": _id(order), **data})


def cancelled(order: int, at: str, reason: str = "requested") -> Happened:
    """It was cancelled."""
    data = {"customer_id": "c-1", "items": _items(ONE), "reason": reason}
    return Happened("orders.cancelled.v1", at, {"order_id": _id(order), **data})


def paid_order(
    order: int, at: str, *, customer: str = "c-1", lines: Lines = ONE, currency: str = "EUR"
) -> list[Happened]:
    """An order was placed, reserved, paid and confirmed, all at *at*."""
    total = _total(lines, currency)["amount"]
    return [
        created(order, at, customer=customer, lines=lines),
        reserved(order, at, lines=lines, currency=currency),
        captured(order, at, total, currency),
        confirmed(order, at, customer=customer, lines=lines, currency=currency),
    ]


def _total(lines: Lines, currency: str) -> dict[str, Any]:
    return _money(sum(quantity * price for _, quantity, price in lines), currency)
