"""A payment provider, as the worker sees it."""

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
    """The money is taken; *reference* is the provider's name for it."""

    reference: str


@frozen
class Declined:
    """The provider said no, for good, and why."""

    reason: str


@frozen
class Pending:
    """The provider has the charge and is still at it: look again later. It is no trouble."""

    reference: str


ChargeResult = Captured | Declined | Pending


class GatewayError(Exception):
    """No answer that tells. *retry_after_seconds* is what the provider asked for, or None."""

    def __init__(self, detail: str, retry_after_seconds: float | None = None) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(detail)


class GatewayNotReached(GatewayError):
    """The call did certainly not arrive: nothing has happened."""


class GatewayTimeout(GatewayError):
    """The call may have arrived: whether anything has happened is unknown. Look it up under the same key."""


class GatewayRejected(Exception):
    """The provider is well and will not do it: a refund that it calls impossible. A person has to look."""


class ResponseMismatch(Exception):
    """
    The provider's answer contradicts the request; nobody may act on it before a person has looked.

    *reason* is a stable code (``wrong_amount``, ``wrong_currency``, ``wrong_order``, ``wrong_id``, ``wrong_key``,
    ``two_charges``, ``nonsense``), *reference* the provider's name for what it speaks of, as far as there is one.
    """

    def __init__(self, reason: str, detail: str, reference: str | None = None) -> None:
        self.reason = reason
        self.reference = reference
        super().__init__(detail)


@frozen
class ChargeRecord:
    """One charge in the provider's own list: what it is about, and how much of it is taken and given back."""

    reference: str
    order_id: str | None
    amount: Money
    is_captured: bool
    refunded_amount: int
    created_at: datetime


class Gateway(Protocol):
    """
    Take money and give it back.

    A *key* belongs to the intent, never to the attempt: the same key again has no second effect. Amounts are in minor
    units. Each call may raise `GatewayNotReached`, `GatewayTimeout` or `ResponseMismatch`, and `refund` also `GatewayRejected`.
    What comes back was compared with what was asked: amount, currency, order.
    """

    @property
    def name(self) -> str:
        """What it is called in metrics and logs."""

    async def charge(self, key: str, order_id: str, amount: Money, payment_method: str | None) -> ChargeResult:
        """Take *amount* for the order, once. Whoever may have asked before looks with `find` first."""

    async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Return what became of the charge under *key*; None: there was none."""

    async def cancel(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Return what became of the charge under *key*, as `find`; what is still open is closed: it takes no money."""

    async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> str:
        """Give back what was captured under *reference*, once; return the provider's name for that."""

    async def close(self) -> None:
        """Hang up. Idempotent."""


@runtime_checkable
class ChargeLedger(Protocol):
    """A provider that keeps a list of its own; the simulated one does not."""

    def records(self, since: datetime, until: datetime) -> AsyncIterator[ChargeRecord]:
        """Yield what was begun from *since* until *until*, declined charges included, in no promised order."""

    async def order_of(self, reference: str) -> str | None:
        """Return the order that the charge *reference* was made for; None where it names none."""
