"""The port to a payment provider, as the payment worker calls it."""

from __future__ import annotations

__all__ = [
    "Captured",
    "ChargeLedger",
    "ChargeRecord",
    "ChargeResult",
    "Declined",
    "Gateway",
    "GatewayError",
    "GatewayNotReached",
    "GatewayRejected",
    "GatewayTimeout",
    "Pending",
    "ResponseMismatch",
]

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Protocol, runtime_checkable

from attrs import frozen

from modules.values import Money


@frozen
class Captured:
    """The provider has taken the money; *reference* is the provider's id of the charge."""

    reference: str


@frozen
class Declined:
    """The provider has declined the charge for good; *reason* is a code."""

    reason: str


@frozen
class Pending:
    """The provider has accepted the charge and has not decided it yet: look it up again later. This is no failure."""

    reference: str


ChargeResult = Captured | Declined | Pending


class GatewayError(Exception):
    """
    The call has no usable response.

    *retry_after_seconds* is how long the provider asked to wait before the next call, or None.
    """

    def __init__(self, detail: str, retry_after_seconds: float | None = None) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(detail)


class GatewayNotReached(GatewayError):
    """The call certainly had no effect: it did not reach the provider, or the provider refused to process it."""


class GatewayTimeout(GatewayError):
    """The call may have reached the provider, so its effect is unknown: look it up under the same key."""


class GatewayRejected(Exception):
    """The provider works and rejects the request, for instance an impossible refund. A person has to look at it."""


class ResponseMismatch(Exception):
    """
    The provider's response contradicts the request; it must not be acted on before a person has reviewed it.

    *reason* is a stable code (``wrong_amount``, ``wrong_currency``, ``wrong_order``, ``wrong_id``, ``wrong_key``,
    ``two_charges``, ``nonsense``), *reference* the provider's id of the object in its response, if there is one.
    """

    def __init__(self, reason: str, detail: str, reference: str | None = None) -> None:
        self.reason = reason
        self.reference = reference
        super().__init__(detail)


@frozen
class ChargeRecord:
    """One charge in the provider's own list: its order, its amount, and whether it was captured and refunded."""

    reference: str
    order_id: str | None
    amount: Money
    is_captured: bool
    refunded_amount: int
    created_at: datetime


class Gateway(Protocol):
    """
    Charge and refund through a payment provider.

    A *key* identifies the intent, not the attempt: a second call with the same key has no second effect. Amounts are in
    minor units. Each call may raise `GatewayNotReached`, `GatewayTimeout` or `ResponseMismatch`; `refund` may also raise
    `GatewayRejected`. Before a method returns, it has compared the response with the request: amount, currency, order.
    """

    @property
    def name(self) -> str:
        """The provider's name in metrics and logs."""

    async def charge(self, key: str, order_id: str, amount: Money, payment_method: str | None) -> ChargeResult:
        """Charge *amount* for the order, once. If an earlier call is possible, the caller must call `find` first."""

    async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Return the result of the charge under *key*; None if there is no such charge."""

    async def cancel(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Return the same as `find`, after cancelling a charge that is still open, so that it can take no money."""

    async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> str:
        """Refund *amount* of the charge *reference*, once; return the provider's id of the refund."""

    async def close(self) -> None:
        """Close all connections. Idempotent."""


@runtime_checkable
class ChargeLedger(Protocol):
    """A provider that keeps a list of all its charges; the simulated provider keeps none."""

    def records(self, since: datetime, until: datetime) -> AsyncIterator[ChargeRecord]:
        """Yield the charges created from *since* until *until*, declined ones included, in no promised order."""

    async def order_of(self, reference: str) -> str | None:
        """Return the id of the order that the charge *reference* names; None if it names none."""
