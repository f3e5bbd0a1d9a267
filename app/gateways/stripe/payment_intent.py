"""Parse Stripe's PaymentIntents from plain JSON, and compare them with what was requested. Without the SDK."""

from __future__ import annotations

__all__ = ["PaymentIntent", "charge_metadata", "charge_result", "names_order", "owner_named_in"]

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from attrs import frozen

from app.gateways.port import Captured, ChargeOwner, ChargeRecord, ChargeResult, Declined, Pending, ResponseMismatch
from app.gateways.stripe.currencies import from_stripe
from app.gateways.stripe.error_table import MODE_DECLINE_CODES, ErrorClass, StripeFault, error_class_of
from modules.values import Money

_ID = re.compile(r"pi_[A-Za-z0-9_]{1,200}")


@frozen
class PaymentIntent:
    """The members of a PaymentIntent that the gateway uses (https://docs.stripe.com/api/payment_intents/object)."""

    id: str
    status: str
    money: Money | None
    """What it was made for; None if that is no amount in a currency."""
    owner: ChargeOwner
    is_fully_received: bool
    """False if it states that another amount was received than it was made for, as it does before it has succeeded."""
    reason: str
    is_soft: bool
    """True if it was declined for a reason that may pass, or that is no fault of the payment method."""
    created: int
    refunded_amount: int

    @classmethod
    def of(cls, value: Any) -> PaymentIntent:
        """
        Parse *value*.

        Raises:
            ResponseMismatch: It is not a PaymentIntent.
        """
        if not isinstance(value, Mapping) or value.get("object") != "payment_intent":
            raise ResponseMismatch("nonsense", "the response is not a PaymentIntent")
        id, created = value.get("id"), value.get("created")
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise ResponseMismatch("wrong_id", "the PaymentIntent has no valid id")
        charge = value.get("latest_charge")
        refunded = from_stripe(_mapping(charge).get("amount_refunded", 0), value.get("currency"))
        fault = StripeFault.of(402, {"error": value.get("last_payment_error")}, None)
        return cls(
            id=id,
            status=str(value.get("status")),
            money=from_stripe(value.get("amount"), value.get("currency")),
            owner=owner_named_in(value, id),
            is_fully_received=value.get("amount_received") in (None, value.get("amount")),
            reason=fault.decline_code or fault.code or "declined",
            is_soft=error_class_of(fault) is ErrorClass.DECLINED_SOFTLY or fault.decline_code in MODE_DECLINE_CODES,
            created=created if isinstance(created, int) else 0,
            refunded_amount=0 if refunded is None else refunded.amount,
        )

    @property
    def order_id(self) -> str | None:
        """The id of the order that it names."""
        return self.owner.order_id

    def check(self, order_id: str, amount: Money) -> None:
        """
        Compare the PaymentIntent with what was requested.

        Raises:
            ResponseMismatch: It is for another order, amount or currency.
        """
        if self.order_id != order_id:
            raise ResponseMismatch("wrong_order", "the PaymentIntent is for another order", self.id)
        if self.money is not None and self.money.currency != amount.currency:
            raise ResponseMismatch("wrong_currency", "the PaymentIntent is in another currency", self.id)
        if self.money != amount or (self.status == "succeeded" and not self.is_fully_received):
            raise ResponseMismatch("wrong_amount", "the PaymentIntent is for another amount", self.id)

    def record(self) -> ChargeRecord:
        """Return the PaymentIntent as an entry of the provider's list."""
        return ChargeRecord(
            reference=self.id,
            order_id=self.order_id,
            amount=self.money or Money(0, ""),
            is_captured=self.status == "succeeded",
            refunded_amount=self.refunded_amount,
            created_at=datetime.fromtimestamp(self.created, UTC),
        )


def charge_result(intents: Iterable[PaymentIntent]) -> ChargeResult | None:
    """
    Return the result of an order's charge from all its *intents*; None if none of them has captured or been declined.

    Raises:
        ResponseMismatch: Two of them have captured the money.
    """
    by_status: dict[str, list[PaymentIntent]] = {}
    for intent in intents:
        by_status.setdefault(intent.status, []).append(intent)
    captured = by_status.get("succeeded", [])
    if len(captured) > 1:
        raise ResponseMismatch("two_charges", f"{len(captured)} PaymentIntents captured the money", captured[0].id)
    if captured:
        return Captured(captured[0].id)
    for pending in (*by_status.get("processing", ()), *by_status.get("requires_capture", ())):
        return Pending(pending.id)
    # Of several, the final one counts: it came after the soft ones.
    for declined in sorted(by_status.get("requires_payment_method", ()), key=lambda intent: intent.is_soft):
        return Declined(declined.reason, declined.is_soft)
    if "canceled" in by_status:
        return Declined("canceled")
    return None


def charge_metadata(order_id: str, key: str, installation: str | None) -> dict[str, str]:
    """Return the metadata of a PaymentIntent or a refund that is made for an order under *key*."""
    named = {} if installation is None else {"installation": installation}
    return {"order_id": order_id, "key": key, **named}


def names_order(value: Mapping[str, Any]) -> bool:
    """Return whether the metadata of *value* name an order, of whatever form."""
    return _mapping(value.get("metadata")).get("order_id") is not None


def owner_named_in(value: Mapping[str, Any], reference: str) -> ChargeOwner:
    """Return what *value*, an object that belongs to the PaymentIntent *reference*, is for, according to its metadata."""
    metadata = _mapping(value.get("metadata"))
    order_id, installation = metadata.get("order_id"), metadata.get("installation")
    return ChargeOwner(
        reference,
        order_id if isinstance(order_id, str) else None,
        installation if isinstance(installation, str) else None,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
