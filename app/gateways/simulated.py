"""A simulated payment provider that takes no money: for development, tests and demonstrations."""

from __future__ import annotations

__all__ = ["SimulatedGateway"]

import random

from app.gateways.port import (
    Captured,
    ChargeDetails,
    ChargeResult,
    Declined,
    GatewayNotReached,
    GatewayTimeout,
    Refunded,
    RefundResult,
)
from bus.ids import derived_id
from bus.port import Clock
from modules.values import Money


class SimulatedGateway:
    """
    Decide charges by a rule, with the latency and the failures of a real provider.

    Each result follows from the key and the amount alone, so a repeated key gives the same result without a stored
    ledger. Amounts above *decline_over* minor units are declined. A share *failure_rate* of all calls fails: half of
    them before the call has had an effect, half after.
    """

    name = "simulated"

    def __init__(
        self,
        clock: Clock,
        *,
        decline_over: int | None = None,
        latency_seconds: float = 0.0,
        failure_rate: float = 0.0,
        rng: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._decline_over = decline_over
        self._latency_seconds = latency_seconds
        self._failure_rate = failure_rate
        self._rng = rng or random.Random()
        self._unreported: dict[str, ChargeResult] = {}
        """The results of charges whose call failed after it had its effect, by order, until `find` returns them."""

    async def charge(self, key: str, order_id: str, amount: Money, details: ChargeDetails) -> ChargeResult:
        """Decline an *amount* over the limit, and capture any other."""
        is_over_limit = self._decline_over is not None and amount.amount > self._decline_over
        result: ChargeResult = Declined("over_limit") if is_over_limit else Captured(f"sim_{derived_id(order_id, key)}")
        await self._delay_or_fail(order_id, result)
        return result

    async def repeats_safely(self, order_id: str) -> bool:
        """Return False: a failed call is reported by a look-up only."""
        return False

    async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Return the result of a charge whose call failed after it had its effect."""
        await self._delay_or_fail()
        return self._unreported.pop(order_id, None)

    async def cancel(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Do the same as `find`: no charge ever stays open."""
        return await self.find(key, order_id, amount)

    async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> RefundResult:
        """Return an id for the refund of *reference*; the total is that of this refund, because no other is known."""
        await self._delay_or_fail()
        return Refunded(f"sim_{derived_id(reference.removeprefix('sim_'), key)}", amount.amount)

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    async def _delay_or_fail(self, order_id: str | None = None, result: ChargeResult | None = None) -> None:
        """
        Wait for the latency, then fail in some of the calls.

        Raises:
            GatewayNotReached: The call had no effect.
            GatewayTimeout: The call had its effect; *result* is kept for a look-up of *order_id*.
        """
        if self._latency_seconds:
            await self._clock.sleep(self._latency_seconds)
        if self._failure_rate and self._rng.random() < self._failure_rate:
            if self._rng.random() < 0.5:
                raise GatewayNotReached("simulated: the connection was refused")
            if order_id is not None and result is not None:
                self._unreported[order_id] = result
            raise GatewayTimeout("simulated: no response")
