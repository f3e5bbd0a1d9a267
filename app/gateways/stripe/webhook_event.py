"""
Check and parse Stripe's webhooks. Pure, and without the SDK.

A webhook is verified in two steps: its signature proves that Stripe sent it, and the payments module then compares its
content with what was requested.
"""

from __future__ import annotations

__all__ = ["TOLERANCE_SECONDS", "InvalidSignature", "Notice", "OldSignature", "StripeEvent", "check_signature", "parse_event"]

import hmac
import re
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

import orjson
from attrs import frozen

from app.gateways.port import ChargeOwner, ResponseMismatch
from app.gateways.stripe.currencies import from_stripe
from app.gateways.stripe.payment_intent import PaymentIntent, names_order, owner_named_in
from app.gateways.stripe.refund import REFERENCE_MAX, key_of
from modules.payments.events import ChargeNotified, DeclineNotified, DisputeReported, RefundNotified, RefundReported
from modules.values import Money

TOLERANCE_SECONDS = 300
"""How old or how far in the future a signature may be, so that a recorded webhook cannot be sent again later."""

SIGNATURES_MAX = 16
REASON_MAX = 64

SUCCEEDED = "payment_intent.succeeded"
FAILED = "payment_intent.payment_failed"
REFUNDED = "charge.refunded"
REFUND_TYPES = ("charge.refund.updated", "refund.created", "refund.failed", "refund.updated")
DISPUTE_TYPES = (
    "charge.dispute.closed",
    "charge.dispute.created",
    "charge.dispute.funds_reinstated",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.updated",
)
HANDLED_TYPES = (SUCCEEDED, FAILED, REFUNDED, *REFUND_TYPES, *DISPUTE_TYPES)

_REFUND_STATUSES = {
    "pending": "pending",
    "requires_action": "pending",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "failed",
}
_DISPUTE_STATUSES = {"won": "won", "warning_closed": "won", "prevented": "won", "lost": "lost"}
"""All other statuses are those of a dispute that is open. An inquiry that is closed without a dispute costs no money."""

_EVENT_OBJECTS = ("event", "v2.core.event")
"""The second are the "thin" events of Stripe's newer API. None of their types is handled: they hold no object."""

_EVENT_ID = re.compile(r"evt_[A-Za-z0-9_]{1,200}")
_INTENT_ID = re.compile(r"pi_[A-Za-z0-9_]{1,200}")
_CHARGE_ID = re.compile(r"(ch|py)_[A-Za-z0-9_]{1,200}")
_ORDER_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_REFUND_KEY = re.compile(r"refund:[0-9a-f-]{36}(?::([0-9]{1,6}))?")
_PART = re.compile(r"\s*(t|v1)=([0-9a-zA-Z]{1,128})\s*")

Notice = ChargeNotified | DeclineNotified | RefundNotified | RefundReported | DisputeReported


class InvalidSignature(Exception):
    """The webhook was not sent by Stripe, or not within the last minutes."""

    code = "invalid_signature"


class OldSignature(InvalidSignature):
    """Stripe sent the webhook, but not within the last minutes, or the clock of this machine is wrong."""


@frozen
class StripeEvent:
    """
    A parsed webhook.

    *notice* is the event to submit to payments. It is None if the type is not handled, if *mismatch* has the code of
    what is wrong, or if the order must be looked up first (`needs_order`). *reference* is the id of the PaymentIntent, or
    of the charge where the webhook names only that. *installation* is the one whose order it is, None if none is named.
    """

    id: str
    type: str
    reference: str | None = None
    notice: Notice | None = None
    mismatch: str | None = None
    installation: str | None = None
    notice_for: Callable[[str, str], Notice] | None = None
    """Returns the notice for a PaymentIntent and an order, where the webhook itself may not name them."""

    @property
    def is_handled(self) -> bool:
        """False for Stripe's many other event types."""
        return self.type in HANDLED_TYPES

    @property
    def needs_order(self) -> bool:
        """True if the webhook names no order or no PaymentIntent: look up *reference*, and pass the result to `for_owner`."""
        return self.is_handled and self.notice is None and self.mismatch is None

    def for_owner(self, owner: ChargeOwner | None) -> StripeEvent:
        """Return the event with its notice, for the order that *owner* names."""
        assert self.notice_for is not None
        if owner is None or owner.order_id is None or not _ORDER_ID.fullmatch(owner.order_id):
            return self.with_mismatch("unknown_intent")
        notice = self.notice_for(owner.reference, owner.order_id)
        return StripeEvent(self.id, self.type, owner.reference, notice, installation=owner.installation)

    def with_mismatch(self, mismatch: str) -> StripeEvent:
        """Return the event with *mismatch*, the code of what is wrong, and without a notice."""
        return StripeEvent(self.id, self.type, self.reference, mismatch=mismatch)


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
        raise OldSignature(f"The signature is more than {TOLERANCE_SECONDS} seconds away from now.")


def parse_event(body: bytes) -> StripeEvent:
    """
    Parse a webhook whose signature has been checked.

    Raises:
        ValueError: It is not a Stripe event.
    """
    value = orjson.loads(body)
    if not isinstance(value, Mapping) or value.get("object", "event") not in _EVENT_OBJECTS:
        raise ValueError("not an event")
    id, type_, data = value.get("id"), value.get("type"), value.get("data")
    if not isinstance(id, str) or not _EVENT_ID.fullmatch(id) or not isinstance(type_, str):
        raise ValueError("not an event")
    if type_ not in HANDLED_TYPES:
        return StripeEvent(id, type_)
    subject = data.get("object") if isinstance(data, Mapping) else None
    if type_ in (SUCCEEDED, FAILED):
        return _intent_event(id, type_, subject)
    members = subject if isinstance(subject, Mapping) else {}
    notice_for = _notice_for(type_, members)
    if notice_for is None:
        return StripeEvent(id, type_, mismatch="nonsense")
    intent_id = _intent_id(members)
    reference = intent_id or (None if type_ == REFUNDED else _charge_id(members))
    if reference is None:  # our charges all belong to a PaymentIntent
        return StripeEvent(id, type_, mismatch="unknown_intent")
    event = StripeEvent(id, type_, reference, notice_for=notice_for)
    if intent_id is None or not names_order(members):
        return event
    return event.for_owner(owner_named_in(members, intent_id))


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
        notice: Notice = ChargeNotified(order_id=order_id, reference=intent.id, amount=amount)
    else:
        notice = DeclineNotified(
            order_id=order_id, reference=intent.id, amount=amount, reason=intent.reason, is_soft=intent.is_soft
        )
    return StripeEvent(id, type_, intent.id, notice, installation=intent.owner.installation)


def _notice_for(type_: str, value: Mapping[str, Any]) -> Callable[[str, str], Notice] | None:
    """Return what makes the notice of *value* for a PaymentIntent and an order; None if *value* is not of the type *type_*."""
    expected = "charge" if type_ == REFUNDED else "refund" if type_ in REFUND_TYPES else "dispute"
    amount = from_stripe(value.get("amount"), value.get("currency"))
    id = value.get("id")
    if value.get("object") != expected or amount is None or not isinstance(id, str) or len(id) > REFERENCE_MAX:
        return None
    if expected == "charge":
        refunded = from_stripe(value.get("amount_refunded"), value.get("currency"))
        return None if refunded is None else partial(_charge_refunded, amount, refunded)
    status = str(value.get("status"))
    if expected == "dispute":
        return partial(_dispute_reported, id, amount, _DISPUTE_STATUSES.get(status, "open"))
    if status not in _REFUND_STATUSES:
        return None
    reason = value.get("failure_reason") or status
    return partial(_refund_reported, id, amount, _REFUND_STATUSES[status], _key_number(value), str(reason)[:REASON_MAX])


def _charge_refunded(amount: Money, refunded: Money, reference: str, order_id: str) -> Notice:
    return RefundNotified(order_id=order_id, reference=reference, amount=amount, refunded_amount=refunded.amount)


def _refund_reported(
    id: str, amount: Money, status: str, key_number: int | None, reason: str, reference: str, order_id: str
) -> Notice:
    return RefundReported(
        order_id=order_id,
        reference=reference,
        refund_reference=id,
        amount=amount,
        status=status,
        key_number=key_number,
        reason=reason if status == "failed" else None,
    )


def _dispute_reported(id: str, amount: Money, status: str, reference: str, order_id: str) -> Notice:
    return DisputeReported(
        order_id=order_id, reference=reference, dispute_reference=id, amount=amount, status=status
    )


def _intent_id(value: Mapping[str, Any]) -> str | None:
    """Return the id of the PaymentIntent that *value* belongs to, which may be expanded; None if it belongs to none."""
    intent, charge = value.get("payment_intent"), value.get("charge")
    if intent is None and isinstance(charge, Mapping):
        intent = charge.get("payment_intent")
    id = intent.get("id") if isinstance(intent, Mapping) else intent
    return id if isinstance(id, str) and _INTENT_ID.fullmatch(id) else None


def _charge_id(value: Mapping[str, Any]) -> str | None:
    """Return the id of the charge that *value* belongs to, which may be expanded; None if it belongs to none."""
    charge = value.get("charge")
    id = charge.get("id") if isinstance(charge, Mapping) else charge
    return id if isinstance(id, str) and _CHARGE_ID.fullmatch(id) else None


def _key_number(refund: Mapping[str, Any]) -> int | None:
    """Return the number of the key under which the payment worker made *refund*; None if it was made at Stripe."""
    match = _REFUND_KEY.fullmatch(key_of(refund) or "")
    return None if match is None else int(match[1] or 1)
