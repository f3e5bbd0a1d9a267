"""
What Stripe says by itself: its webhooks, checked and read. Pure, and without the SDK.

A webhook is believed in two steps. Its signature says that it comes from Stripe; whether it fits what we asked for is
for the payments module to say.
"""

from __future__ import annotations

__all__ = ["TOLERANCE_SECONDS", "InvalidSignature", "StripeEvent", "check_signature", "read"]

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import orjson
from attrs import frozen

from app.gateways.port import ResponseMismatch
from app.gateways.stripe.payment_intent import PaymentIntent
from modules.payments.events import ChargeNotified, DeclineNotified, RefundNotified
from modules.values import Money

TOLERANCE_SECONDS = 300
"""How old a signature may be, and how far ahead: whoever records a webhook cannot bring it again later."""

SIGNATURES_MAX = 16

SUCCEEDED = "payment_intent.succeeded"
FAILED = "payment_intent.payment_failed"
REFUNDED = "charge.refunded"
HANDLED_TYPES = (SUCCEEDED, FAILED, REFUNDED)

_EVENT_ID = re.compile(r"evt_[A-Za-z0-9_]{1,200}")
_ORDER_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_PART = re.compile(r"\s*(t|v1)=([0-9a-zA-Z]{1,128})\s*")


class InvalidSignature(Exception):
    """The webhook does not come from Stripe, or not from now."""

    code = "invalid_signature"


@frozen
class StripeEvent:
    """
    A webhook, read.

    *said* is what payments is to be told: None where the type is none that we hear, or where *doubt* says why not.
    *reference* is the PaymentIntent that it is about; with neither *said* nor *doubt* its order is yet to be found there.
    """

    id: str
    type: str
    reference: str | None = None
    notice: ChargeNotified | DeclineNotified | RefundNotified | None = None
    mismatch: str | None = None
    refund: tuple[Money, int] | None = None
    """Of how much how much went back, where it is about a refund."""

    @property
    def is_handled(self) -> bool:
        """False for the many types that say nothing to us."""
        return self.type in HANDLED_TYPES

    def for_order(self, order_id: str | None) -> StripeEvent:
        """Return it for an order that was found elsewhere."""
        assert self.reference is not None
        assert self.refund is not None
        if order_id is None or not _ORDER_ID.fullmatch(order_id):
            return StripeEvent(self.id, self.type, self.reference, mismatch="unknown_intent")
        amount, refunded = self.refund
        said = RefundNotified(order_id=order_id, reference=self.reference, amount=amount, refunded_amount=refunded)
        return StripeEvent(self.id, self.type, self.reference, said)


def check_signature(body: bytes, header: str | None, secret: str, now: float) -> None:
    """
    Check the header ``Stripe-Signature`` (``t=<seconds>,v1=<hex>,v1=<hex>``) over the raw *body*.

    Any one of several signatures will do: while a secret is being rolled there are two. Each is compared in constant
    time, and the time is looked at only after the signature that covers it.

    Raises:
        InvalidSignature: None of them is right, or it is too old or too new.
    """
    if header is None:
        raise InvalidSignature("There is no Stripe-Signature.")
    times: list[str] = []
    signatures: list[str] = []
    for part in header.split(",")[: SIGNATURES_MAX + 1]:
        found = _PART.fullmatch(part)
        if found is not None:
            (times if found[1] == "t" else signatures).append(found[2])
    if len(times) != 1 or not times[0].isdecimal() or len(times[0]) > 12 or not signatures:
        raise InvalidSignature("Stripe-Signature must have one t and at least one v1.")
    expected = hmac.new(secret.encode(), f"{times[0]}.".encode() + body, sha256).hexdigest()
    if not sum(hmac.compare_digest(expected, signature) for signature in signatures):
        raise InvalidSignature("No signature fits the body.")
    if abs(now - int(times[0])) > TOLERANCE_SECONDS:
        raise InvalidSignature(f"The signature is more than {TOLERANCE_SECONDS} seconds away from now.")


def read(body: bytes) -> StripeEvent:
    """
    Read a webhook whose signature has been checked.

    Raises:
        ValueError: It is no event of Stripe's.
    """
    value = orjson.loads(body)
    if not isinstance(value, Mapping) or value.get("object", "event") != "event":
        raise ValueError("no event")
    id, type_, data = value.get("id"), value.get("type"), value.get("data")
    if not isinstance(id, str) or not _EVENT_ID.fullmatch(id) or not isinstance(type_, str):
        raise ValueError("no event")
    if type_ not in HANDLED_TYPES:
        return StripeEvent(id, type_)
    about = data.get("object") if isinstance(data, Mapping) else None
    return _refunded(id, about) if type_ == REFUNDED else _moved(id, type_, about)


def _moved(id: str, type_: str, about: Any) -> StripeEvent:
    try:
        intent = PaymentIntent.of(about)
    except ResponseMismatch as wrong:
        return StripeEvent(id, type_, mismatch=wrong.reason)
    amount = _money(intent.amount, intent.currency)
    is_taken = type_ == SUCCEEDED
    if (intent.status == "succeeded") != is_taken or not intent.is_taken_whole or amount is None:
        return StripeEvent(id, type_, intent.id, mismatch="nonsense")
    if intent.order_id is None or not _ORDER_ID.fullmatch(intent.order_id):
        return StripeEvent(id, type_, intent.id, mismatch="unknown_intent")
    order_id = intent.order_id
    if is_taken:
        return StripeEvent(id, type_, intent.id, ChargeNotified(order_id=order_id, reference=intent.id, amount=amount))
    refusal = DeclineNotified(order_id=order_id, reference=intent.id, amount=amount, reason=intent.reason)
    return StripeEvent(id, type_, intent.id, refusal)


def _refunded(id: str, about: Any) -> StripeEvent:
    charge = about if isinstance(about, Mapping) else {}
    reference, refunded = charge.get("payment_intent"), charge.get("amount_refunded")
    amount = _money(charge.get("amount"), charge.get("currency"))
    if charge.get("object") != "charge" or type(refunded) is not int or amount is None:
        return StripeEvent(id, REFUNDED, mismatch="nonsense")
    if not isinstance(reference, str) or not re.fullmatch(r"pi_[A-Za-z0-9_]{1,200}", reference):
        return StripeEvent(id, REFUNDED, mismatch="unknown_intent")
    event = StripeEvent(id, REFUNDED, reference, refund=(amount, refunded))
    metadata = charge.get("metadata")
    order_id = metadata.get("order_id") if isinstance(metadata, Mapping) else None
    return event if order_id is None else event.for_order(str(order_id))


def _money(amount: Any, currency: Any) -> Money | None:
    if type(amount) is not int or not isinstance(currency, str) or not re.fullmatch("[A-Za-z]{3}", currency):
        return None
    return Money(amount, currency.upper())
