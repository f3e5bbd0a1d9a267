"""A payment provider, as the worker sees it."""

from __future__ import annotations

__all__ = ["Answer", "Captured", "Gateway", "GatewayAway", "GatewaySilent", "GatewayTrouble", "Refused"]

from typing import Protocol

from attrs import frozen

from modules.values import Money


@frozen
class Captured:
    """The money is taken; *reference* is the provider's name for it."""

    reference: str


@frozen
class Refused:
    """The provider said no, for good, and why."""

    reason: str


Answer = Captured | Refused


class GatewayTrouble(Exception):
    """No answer that tells. *retry_after_seconds* is what the provider asked for, or None."""

    def __init__(self, detail: str, retry_after_seconds: float | None = None) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(detail)


class GatewayAway(GatewayTrouble):
    """The call did certainly not arrive: nothing has happened."""


class GatewaySilent(GatewayTrouble):
    """The call may have arrived: whether anything has happened is unknown. Look it up under the same key."""


class Gateway(Protocol):
    """
    Take money and give it back.

    A *key* belongs to the intent, never to the attempt: the same key again has no second effect. Amounts are in minor
    units. Each call may raise `GatewayAway` or `GatewaySilent`, and nothing else.
    """

    @property
    def name(self) -> str:
        """What it is called in metrics and logs."""

    async def charge(self, key: str, order_id: str, amount: Money, payment_method: str | None) -> Answer:
        """Take *amount* for the order, once."""

    async def find(self, key: str, order_id: str) -> Answer | None:
        """Return what became of the charge under *key*; None: there was none."""

    async def refund(self, key: str, reference: str, amount: Money) -> str:
        """Give back what was captured under *reference*, once; return the provider's name for it."""
