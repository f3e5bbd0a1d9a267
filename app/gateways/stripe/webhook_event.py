"""
Check and parse Stripe's webhooks. Pure, and without the SDK.

A webhook is verified in two steps: its signature proves that Stripe sent it, and the payments module then compares its
content with what was requested.
"""

from __future__ import annotations

__all__ = ["TOLERANCE_SECONDS", "InvalidSignature", "Notice", "StripeEvent", "check_signature", "parse_event"]

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import orjson
from attrs import frozen

from app.gateways.port import ResponseMismatch
from app.gateways.stripe.currencies import from_stripe
from app.gateways.stripe.payment_intent import PaymentIntent
from modules.payments.events import ChargeNotified, DeclineNotified, RefundNotified
from modules.values import Money

TOLERANCE_SECONDS = 300
"""How old or how far in the future a signature may be, so that a recorded webhook cannot be sent again later."""

SIGNATURES_MAX = 16

SUCCEEDED = "payment_intent.succeeded"
FAILED = "payment_intent.payment_failed"
REFUNDED = "charge.refunded"
HANDLED_TYPES = (SUCCEEDED, FAILED, REFUNDED)

_EVENT_ID = re.compile(r"evt_[A-Za-z0-9_]{1,200}")
_INTENT_ID = re.compile(r"pi_[A-Za-z0-9_]{1,200}")
_ORDER_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_PART = re.compile(r"\s*(t|v1)=([0-9a-zA-Z]{1,128})\s*")

Notice = ChargeNotified | DeclineNotified | RefundNotified


class InvalidSignature(Exception):
    """The webhook was not sent by Stripe, or not within the last minutes."""

    code = "invalid_signature"


@frozen
class StripeEvent:
    """
    A parsed webhook.

    *notice* is the event to submit to payments. It is None if the type is not handled, if *mismatch* has the code of
    what is wrong, or if the order must be looked up first (`needs_order`). *reference* is the id of the PaymentIntent.
    """

    id: str
    type: str
    reference: str | None = None
    notice: Notice | None = None
    mismatch: str | None = None
    refund: tuple[Money, int] | None = None
    """For a refund: the amount of the charge, and how many minor units of it were refunded."""

    @property
    def is_handled(self) -> bool:
        """False for Stripe's many other event types."""
        return self.type in HANDLED_TYPES

    @property
    def needs_order(self) -> bool:
        """True if the webhook names no order: its PaymentIntent does; pass it to `for_order`."""
        return self.is_handled and self.notice is None and self.mismatch is None

    def for_order(self, order_id: str | None) -> StripeEvent:
        """Return the refund event with its notice, for the order that its PaymentIntent names."""
        assert self.reference is not None
        assert self.refund is not None
        if order_id is None or not _ORDER_ID.fullmatch(order_id):
            return StripeEvent(self.id, self.type, self.reference, mismatch="unknown_intent")
        amount, refunded = self.refund
        notice = RefundNotified(order_id=order_id, reference=self.reference, amount=amount, refunded_amount=refunded)
        return StripeEvent(self.id, self.type, self.reference, notice)


def check_signature(body: bytes, header: str | None, secret: str, now: float) -> None:
    """
    Check the header ``Stripe-Signature`` (``t=<seconds>,v1=<hex>,v1=<hex>``) over the raw *body*.

    One valid signature of several is enough: while a secret is being rolled, there are two. Each is compared in constant
    time. The time is checked last, because the signature covers it. See https://docs.stripe.com/webhooks#verify-manually.

    Raises:
        InvalidSignature: No signature is valid, or the time is too far in the past or in the future.
    """
    if header is None:
        raise InvalidSignature("There is no Stripe-Signature.")
    times: list[str] = []
    signatures: list[str] = []
    for part in header.split(",")[: SIGNATURES_MAX + 1]:
        match = _PART.fullmatch(part)
        if match is not None:
            (times if match[1] == "t" else signatures).append(match[2])
    if len(times) != 1 or not times[0].isdecimal() or len(times[0]) > 12 or not signatures:
        raise InvalidSignature("Stripe-Signature must have one t and at least one v1.")
    expected = hmac.new(secret.encode(), f"{times[0]}.".encode() + body, sha256).hexdigest()
    if not sum(hmac.compare_digest(expected, signature) for signature in signatures):
        raise InvalidSignature("No signature matches the body.")
    if abs(now - int(times[0])) > TOLERANCE_SECONDS:
        raise InvalidSignature(f"The signature is more than {TOLERANCE_SECONDS} seconds away from now.")


def parse_event(body: bytes) -> StripeEvent:
    """
    Parse a webhook whose signature has been checked.

    Raises:
        ValueError: It is not a Stripe event.
    """
    value = orjson.loads(body)
    if not isinstance(value, Mapping) or value.get("object", "event") != "event":
        raise ValueError("not an event")
    id, type_, data = value.get("id"), value.get("type"), value.get("data")
    if not isinstance(id, str) or not _EVENT_ID.fullmatch(id) or not isinstance(type_, str):
        raise ValueError("not an event")
    if type_ not in HANDLED_TYPES:
        return StripeEvent(id, type_)
    subject = data.get("object") if isinstance(data, Mapping) else None
    return _refund_event(id, subject) if type_ == REFUNDED else _intent_event(id, type_, subject)


def _intent_event(id: str, type_: str, value: Any) -> StripeEvent:
    """Return the event about *value*, a PaymentIntent that succeeded or failed."""
    try:
        intent = PaymentIntent.of(value)
    except ResponseMismatch as error:
        return StripeEvent(id, type_, mismatch=error.reason)
    if intent.order_id is None or not _ORDER_ID.fullmatch(intent.order_id):
        return StripeEvent(id, type_, intent.id, mismatch="unknown_intent")
    amount, is_success = intent.money, type_ == SUCCEEDED
    # Before it has succeeded, amount_received is 0.
    if (intent.status == "succeeded") != is_success or (is_success and not intent.is_fully_received) or amount is None:
        return StripeEvent(id, type_, intent.id, mismatch="nonsense")
    order_id = intent.order_id
    if is_success:
        return StripeEvent(id, type_, intent.id, ChargeNotified(order_id=order_id, reference=intent.id, amount=amount))
    notice = DeclineNotified(order_id=order_id, reference=intent.id, amount=amount, reason=intent.reason)
    return StripeEvent(id, type_, intent.id, notice)


def _refund_event(id: str, value: Any) -> StripeEvent:
    """Return the event about *value*, a charge that was refunded. Its metadata may lack the order; see `needs_order`."""
    charge = value if isinstance(value, Mapping) else {}
    reference, refunded = charge.get("payment_intent"), charge.get("amount_refunded")
    amount, refunded_money = (from_stripe(value, charge.get("currency")) for value in (charge.get("amount"), refunded))
    if charge.get("object") != "charge" or refunded_money is None or amount is None:
        return StripeEvent(id, REFUNDED, mismatch="nonsense")
    if not isinstance(reference, str) or not _INTENT_ID.fullmatch(reference):
        return StripeEvent(id, REFUNDED, mismatch="unknown_intent")
    event = StripeEvent(id, REFUNDED, reference, refund=(amount, refunded_money.amount))
    metadata = charge.get("metadata")
    order_id = metadata.get("order_id") if isinstance(metadata, Mapping) else None
    return event if order_id is None else event.for_order(str(order_id))
