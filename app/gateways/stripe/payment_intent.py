"""What Stripe says, read: plain JSON becomes something that can be compared with what was asked. No SDK in here."""

from __future__ import annotations

__all__ = ["PaymentIntent", "charge_result"]

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from attrs import frozen

from app.gateways.port import Captured, ChargeRecord, ChargeResult, Declined, Pending, ResponseMismatch
from modules.values import Money

REASON_MAX = 64
_ID = re.compile(r"pi_[A-Za-z0-9_]{1,200}")


@frozen
class PaymentIntent:
    """A PaymentIntent, as far as we look at it."""

    id: str
    status: str
    amount: Any
    currency: Any
    order_id: str | None
    is_taken_whole: bool
    """False where it says itself that it took another amount than it is for."""
    reason: str
    created: int
    refunded_amount: int

    @classmethod
    def of(cls, value: Any) -> PaymentIntent:
        """
        Read *value*.

        Raises:
            Contradiction: It is no PaymentIntent.
        """
        if not isinstance(value, Mapping) or value.get("object") != "payment_intent":
            raise ResponseMismatch("nonsense", "the answer is no PaymentIntent")
        id, created = value.get("id"), value.get("created")
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise ResponseMismatch("wrong_id", "the PaymentIntent has no id of its kind")
        charge = value.get("latest_charge")
        refunded = charge.get("amount_refunded") if isinstance(charge, Mapping) else 0
        order_id = _mapping(value.get("metadata")).get("order_id")
        error = _mapping(value.get("last_payment_error"))
        return cls(
            id=id,
            status=str(value.get("status")),
            amount=value.get("amount"),
            currency=value.get("currency"),
            order_id=order_id if isinstance(order_id, str) else None,
            is_taken_whole=value.get("amount_received") in (None, value.get("amount")),
            reason=str(error.get("decline_code") or error.get("code") or "declined")[:REASON_MAX],
            created=created if isinstance(created, int) else 0,
            refunded_amount=refunded if isinstance(refunded, int) else 0,
        )

    def check(self, order_id: str, amount: Money) -> None:
        """
        Compare it with what was asked for.

        Raises:
            Contradiction: It is about something else.
        """
        if self.order_id != order_id:
            raise ResponseMismatch("wrong_order", "the PaymentIntent is for another order", self.id)
        if self.amount != amount.amount or (self.status == "succeeded" and not self.is_taken_whole):
            raise ResponseMismatch("wrong_amount", "the PaymentIntent is for another amount", self.id)
        if not isinstance(self.currency, str) or self.currency.upper() != amount.currency:
            raise ResponseMismatch("wrong_currency", "the PaymentIntent is in another currency", self.id)

    def record(self) -> ChargeRecord:
        """Return it as a line of the provider's list."""
        return ChargeRecord(
            reference=self.id,
            order_id=self.order_id,
            amount=Money(self.amount if isinstance(self.amount, int) else 0, str(self.currency).upper()),
            is_captured=self.status == "succeeded",
            refunded_amount=self.refunded_amount,
            created_at=datetime.fromtimestamp(self.created, UTC),
        )


def charge_result(intents: Iterable[PaymentIntent]) -> ChargeResult | None:
    """
    Say what became of an order's money, all its *intents* together; None: none of them took it or was refused.

    Raises:
        Contradiction: Two of them took it.
    """
    by_status: dict[str, list[PaymentIntent]] = {}
    for intent in intents:
        by_status.setdefault(intent.status, []).append(intent)
    taken = by_status.get("succeeded", [])
    if len(taken) > 1:
        raise ResponseMismatch("two_charges", f"{len(taken)} PaymentIntents took the money", taken[0].id)
    if taken:
        return Captured(taken[0].id)
    for busy in (*by_status.get("processing", ()), *by_status.get("requires_capture", ())):
        return Pending(busy.id)
    for refused in by_status.get("requires_payment_method", ()):
        return Declined(refused.reason)
    if "canceled" in by_status:
        return Declined("canceled")
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
