"""Parse Stripe's refunds from plain JSON, and compare them with what was requested. Without the SDK."""

from __future__ import annotations

__all__ = ["REFERENCE_MAX", "key_of", "refund_money", "refund_result", "refunded_total"]

from collections.abc import Iterable, Mapping
from typing import Any

from app.gateways.port import Refunded, RefundPending, RefundRejected, RefundResult, ResponseMismatch
from app.gateways.stripe.currencies import from_stripe
from modules.values import Money

REFERENCE_MAX = 255
"""The length of the database column for the provider's ids."""

_COUNTED_STATUSES = ("succeeded", "pending", "requires_action")
"""The statuses of a refund that returns money to the customer; failed and cancelled refunds returned it to the account."""


def refunded_total(refunds: Iterable[Mapping[str, Any]]) -> int:
    """
    Return how many minor units *refunds* give back, pending ones included.

    Raises:
        ResponseMismatch: One of them has no amount.
    """
    return sum(refund_money(refund).amount for refund in refunds if refund.get("status") in _COUNTED_STATUSES)


def key_of(refund: Mapping[str, Any]) -> str | None:
    """Return the key under which *refund* was made; None if it was not made here. Releases before 0.3 made one per order."""
    metadata = refund.get("metadata")
    if not isinstance(metadata, Mapping):
        return None
    key = metadata.get("key")
    if key is None and "order_id" in metadata:
        return f"refund:{metadata['order_id']}"
    return None if key is None else str(key)


def refund_result(refund: Mapping[str, Any], amount: Money, total: int) -> RefundResult:
    """Return the result that *refund* means; *total* is what was refunded of its charge altogether."""
    id, status = _id(refund, amount), refund.get("status")
    if status in ("failed", "canceled"):
        return RefundRejected(f"refund_{status}", refunded_total=total, reference=id)
    return Refunded(id, total) if status == "succeeded" else RefundPending(id, total)


def _id(refund: Mapping[str, Any], amount: Money) -> str:
    """
    Return the id of *refund*.

    Raises:
        ResponseMismatch: It is not a refund, or one of another amount or currency.
    """
    id = refund.get("id")
    if refund.get("object") != "refund" or not isinstance(id, str) or not id.startswith("re_"):
        raise ResponseMismatch("wrong_id", "the response is not a refund")
    if refund_money(refund) != amount:
        raise ResponseMismatch("wrong_amount", "the refund is for another amount", id[:REFERENCE_MAX])
    return id[:REFERENCE_MAX]


def refund_money(refund: Mapping[str, Any]) -> Money:
    """
    Return the amount of *refund*.

    Raises:
        ResponseMismatch: It has none.
    """
    money = from_stripe(refund.get("amount"), refund.get("currency"))
    if money is None:
        raise ResponseMismatch("nonsense", "a refund has no amount")
    return money
