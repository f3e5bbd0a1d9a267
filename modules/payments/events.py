"""What payments says, and what the worker at the gateway tells it."""

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
    "NoticeRejected",
    "PaymentCaptured",
    "PaymentDeclined",
    "PaymentDelayed",
    "PaymentRefunded",
    "PaymentReviewRequired",
    "RefundFailed",
    "RefundNotified",
    "RefundRequested",
    "RefundSucceeded",
]

from attrs import frozen

from bus.subjects import event
from modules.values import Money


@event("payments.charge_requested.v1")
class ChargeRequested:
    """
    The gateway is to be asked for an order's money.

    From the second *attempt* on it may have it already: look first. When *is_wanted* is false the order was cancelled
    meanwhile: look only.
    """

    order_id: str
    amount: Money
    attempt: int
    is_wanted: bool
    payment_method: str | None = None


@event("payments.refund_requested.v1")
class RefundRequested:
    """The gateway is to give an order's money back."""

    order_id: str
    amount: Money
    reference: str
    attempt: int


@event("payments.captured.v1")
class PaymentCaptured:
    """The money is ours; *reference* is the gateway's."""

    order_id: str
    amount: Money
    reference: str


@event("payments.declined.v1")
class PaymentDeclined:
    """The gateway said no, for good."""

    order_id: str
    amount: Money
    reason: str


@event("payments.delayed.v1")
class PaymentDelayed:
    """The gateway is out of reach; we shall ask again."""

    order_id: str


@event("payments.put_aside.v1")
class PaymentReviewRequired:
    """What the gateway said contradicts what it was asked: a person has to look."""

    order_id: str
    reason: str


@event("payments.refunded.v1")
class PaymentRefunded:
    """The money went back."""

    order_id: str
    amount: Money
    reference: str


@frozen(kw_only=True)
class ChargeSucceeded:
    """The gateway has taken the money."""

    order_id: str
    reference: str
    calls: int


@frozen(kw_only=True)
class ChargeDeclined:
    """The gateway will not take it."""

    order_id: str
    reason: str
    calls: int


@frozen(kw_only=True)
class ChargeFailed:
    """
    The gateway gave no answer that tells. After *retry_seconds* it is worth asking again.

    *is_unknown*: a call may have reached it. Otherwise none has.
    """

    order_id: str
    is_unknown: bool
    retry_seconds: float
    calls: int


@frozen(kw_only=True)
class ChargeMismatch:
    """
    The gateway's answer contradicts what it was asked; *reason* says in what.

    *reference* is the gateway's name for what it speaks of, as far as there is one.
    """

    order_id: str
    reason: str
    reference: str | None
    calls: int


@frozen(kw_only=True)
class ChargeDelayed:
    """The gateway is out of reach, and the order's charge has not been sent to it yet."""

    order_id: str


@frozen(kw_only=True)
class RefundSucceeded:
    """The gateway has given the money back."""

    order_id: str
    reference: str


@frozen(kw_only=True)
class RefundFailed:
    """
    The gateway did not give the money back; ask again after *retry_seconds*.

    *reason* is its code where it refused; *calls* is 0 where it was not even asked.
    """

    order_id: str
    retry_seconds: float
    reason: str = "refund_failed"
    calls: int = 1


@frozen(kw_only=True)
class ChargeNotified:
    """The gateway says by itself that it has taken *amount* for an order, under *reference*."""

    order_id: str
    reference: str
    amount: Money


@frozen(kw_only=True)
class DeclineNotified:
    """The gateway says by itself that it did not take *amount* for an order."""

    order_id: str
    reference: str
    amount: Money
    reason: str


@frozen(kw_only=True)
class RefundNotified:
    """The gateway says by itself that of *amount*, taken under *reference*, it has given *refunded_amount* back."""

    order_id: str
    reference: str
    amount: Money
    refunded_amount: int


@frozen(kw_only=True)
class NoticeRejected:
    """Reply: what the gateway says by itself does not fit what we know; *reason* is a stable code."""

    order_id: str
    reason: str
