"""The events that payments publishes, and those that the payment worker and the webhook handler submit to it."""

from __future__ import annotations

__all__ = [
    "ChargeDeclined",
    "ChargeDelayed",
    "ChargeFailed",
    "ChargeMismatch",
    "ChargeNotified",
    "ChargeRequested",
    "ChargeSucceeded",
    "DeclineNotified",
    "DisputeReported",
    "NoticeRejected",
    "PaymentCaptured",
    "PaymentDeclined",
    "PaymentDelayed",
    "PaymentRefundFailed",
    "PaymentRefunded",
    "PaymentReviewRequired",
    "RefundFailed",
    "RefundNotified",
    "RefundProcessing",
    "RefundReported",
    "RefundRequested",
    "RefundSucceeded",
    "SettleImpossible",
    "SettleRequested",
]

from attrs import frozen

from bus.subjects import event
from modules.values import Address, Money


@event("payments.charge_requested.v1")
class ChargeRequested:
    """
    The payment worker is to charge an order's amount.

    From the second *attempt* on the charge may exist already, so the worker looks it up first. If *is_wanted* is false,
    the order was cancelled or the payment needs review, and the worker only looks the charge up. *key_number* is the number
    of the idempotency key for a new charge: it grows after a call that has failed for certain.
    """

    order_id: str
    amount: Money
    attempt: int
    is_wanted: bool
    payment_method: str | None = None
    payment_customer: str | None = None
    shipping_address: Address | None = None
    key_number: int = 1


@event("payments.refund_requested.v1")
class RefundRequested:
    """
    The payment worker is to refund *amount* of the charge that the gateway knows as *reference*.

    *key_number* is the number of the idempotency key; a request with the number of an earlier one asks for the same refund,
    whose outcome is not known yet.
    """

    order_id: str
    amount: Money
    reference: str
    attempt: int
    key_number: int = 1


@event("payments.captured.v1")
class PaymentCaptured:
    """The payment of an order was captured; the gateway assigned *reference*."""

    order_id: str
    amount: Money
    reference: str


@event("payments.declined.v1")
class PaymentDeclined:
    """The gateway declined the payment of an order; the decision is final."""

    order_id: str
    amount: Money
    reason: str


@event("payments.delayed.v1")
class PaymentDelayed:
    """The gateway is unavailable; the charge will be retried."""

    order_id: str


@event("payments.put_aside.v1")
class PaymentReviewRequired:
    """The gateway's response contradicts the request; manual review is required."""

    order_id: str
    reason: str


@event("payments.refunded.v1")
class PaymentRefunded:
    """
    *amount* of the payment of an order was refunded.

    *kept* is what is left of the payment, None if nothing is. *refund_id* is the id that orders gave the refund, None if the
    cancellation asked for it or it was made at the gateway.
    """

    order_id: str
    amount: Money
    reference: str
    kept: Money | None = None
    refund_id: str | None = None


@event("payments.refund_failed.v1")
class PaymentRefundFailed:
    """
    *amount* was not refunded; *reason* is a code, *refund_id* as in `PaymentRefunded`.

    With *is_final* it is not tried again, and a person has to act. With *has_returned* it had been refunded before: a
    `PaymentRefunded` reported it, and the money has come back.
    """

    order_id: str
    amount: Money
    reason: str
    is_final: bool
    refund_id: str | None = None
    has_returned: bool = False


@frozen(kw_only=True)
class ChargeSucceeded:
    """The gateway has made the charge, and has refunded *refunded_total* minor units of it since."""

    order_id: str
    reference: str
    calls: int
    refunded_total: int = 0


@frozen(kw_only=True)
class ChargeDeclined:
    """The gateway has declined the charge; with *is_soft* it may accept the same charge later."""

    order_id: str
    reason: str
    calls: int
    is_soft: bool = False
    key_number: int = 1
    """The number of the idempotency key for the next attempt, if there is one."""


@frozen(kw_only=True)
class ChargeFailed:
    """
    The outcome of a charge is not known; retry after *retry_seconds*.

    *is_unknown* is true if a call may have reached the gateway, and false if certainly none has. *key_number* is the number
    of the idempotency key for the next attempt.
    """

    order_id: str
    is_unknown: bool
    retry_seconds: float
    calls: int
    key_number: int = 1


@frozen(kw_only=True)
class ChargeMismatch:
    """
    The gateway's response contradicts the request; *reason* is the code of the contradiction.

    *reference* is the gateway's reference of the charge in the response, if there is one.
    """

    order_id: str
    reason: str
    reference: str | None
    calls: int


@frozen(kw_only=True)
class ChargeDelayed:
    """The gateway is unavailable, and the order's charge has not been sent to it yet."""

    order_id: str


@frozen(kw_only=True)
class RefundSucceeded:
    """The gateway has made the refund; *refunded_total* is what it has refunded of the charge altogether, if known."""

    order_id: str
    reference: str
    key_number: int = 1
    refunded_total: int = 0


@frozen(kw_only=True)
class RefundProcessing:
    """The gateway has accepted the refund, which may still succeed or fail; see `RefundSucceeded`."""

    order_id: str
    reference: str
    key_number: int
    refunded_total: int


@frozen(kw_only=True)
class RefundFailed:
    """
    The gateway did not make the refund, or did not answer.

    With *is_definite* it will never make it under this key: *reason* is its code, *reference* is set if there is a refund
    that has failed, and *refunded_total* is what it has refunded altogether, if known. Otherwise retry under the same
    key after *retry_seconds*. *calls* is 0 if no call was made.
    """

    order_id: str
    retry_seconds: float
    reason: str = "refund_failed"
    calls: int = 1
    key_number: int = 1
    is_definite: bool = False
    reference: str | None = None
    refunded_total: int = 0


@frozen(kw_only=True)
class ChargeNotified:
    """Webhook: the gateway has charged *amount* for an order, under *reference*."""

    order_id: str
    reference: str
    amount: Money


@frozen(kw_only=True)
class DeclineNotified:
    """Webhook: the gateway has declined a charge of *amount* for an order; see `ChargeDeclined` for *is_soft*."""

    order_id: str
    reference: str
    amount: Money
    reason: str
    is_soft: bool = False


@frozen(kw_only=True)
class RefundNotified:
    """Webhook: the gateway has refunded *refunded_amount* of *amount*, which it had charged under *reference*."""

    order_id: str
    reference: str
    amount: Money
    refunded_amount: int


@frozen(kw_only=True)
class RefundReported:
    """
    Webhook: one refund of the charge *reference* is *status*: ``pending``, ``succeeded`` or ``failed``.

    *amount* is that of the refund, *refund_reference* the gateway's id of it. *key_number* is the number of the idempotency
    key under which the payment worker made it; None if it was made at the gateway. *reason* is the code of a failure.
    """

    order_id: str
    reference: str
    refund_reference: str
    amount: Money
    status: str
    key_number: int | None = None
    reason: str | None = None


@frozen(kw_only=True)
class DisputeReported:
    """Webhook: the customer disputes *amount* of the charge *reference*; *status* is ``open``, ``won`` or ``lost`` (by us)."""

    order_id: str
    reference: str
    dispute_reference: str
    amount: Money
    status: str


@frozen(kw_only=True)
class NoticeRejected:
    """Reply: a webhook does not match the payment; *reason* is a stable code."""

    order_id: str
    reason: str


@frozen(kw_only=True)
class SettleRequested:
    """A person closes the case of a payment with *outcome*: ``captured``, ``declined`` or ``refunded``; *why* is free text."""

    order_id: str
    outcome: str
    why: str


@frozen(kw_only=True)
class SettleImpossible:
    """Reply: the payment is not settled; *code* is stable, *detail* a sentence for the reader. *code* is None if there is none."""

    order_id: str
    code: str | None
    detail: str = ""
