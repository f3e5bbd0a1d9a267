"""What payments says, and what the worker at the gateway tells it."""

from __future__ import annotations

__all__ = [
    "ChargeFailed",
    "ChargeRefused",
    "ChargeRequested",
    "Charged",
    "PaymentCaptured",
    "PaymentDeclined",
    "PaymentDelayed",
    "PaymentRefunded",
    "RefundFailed",
    "RefundRequested",
    "Refunded",
]

from attrs import frozen

from bus.contracts import event
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


@event("payments.refunded.v1")
class PaymentRefunded:
    """The money went back."""

    order_id: str
    amount: Money
    reference: str


@frozen(kw_only=True)
class Charged:
    """The gateway has taken the money."""

    order_id: str
    reference: str
    calls: int


@frozen(kw_only=True)
class ChargeRefused:
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
class Refunded:
    """The gateway has given the money back."""

    order_id: str
    reference: str


@frozen(kw_only=True)
class RefundFailed:
    """The gateway gave no answer to a refund; ask again after *retry_seconds*."""

    order_id: str
    retry_seconds: float
