"""A payment provider without money: for development, tests and demonstrations."""

from __future__ import annotations

__all__ = ["SimulatedGateway"]

import random

from app.gateways.port import Captured, ChargeResult, Declined, GatewayNotReached, GatewayTimeout
from bus.ids import derived_id
from bus.port import Clock
from modules.values import Money


class SimulatedGateway:
    """
    Answer by rule, with the weather of a real provider.

    What it answers follows from key and amount alone, so it knows a repeated key without keeping a ledger. Totals above
    *decline_over* minor units are declined. A share of *failure_rate* of all calls fails: half of those before
    anything happened, half after it had.
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
        self._untold: dict[str, ChargeResult] = {}

    async def charge(self, key: str, order_id: str, amount: Money, payment_method: str | None) -> ChargeResult:
        """Decline *amount* over the limit, and capture it otherwise."""
        is_over = self._decline_over is not None and amount.amount > self._decline_over
        answer: ChargeResult = Declined("over_limit") if is_over else Captured(f"sim_{derived_id(order_id, key)}")
        await self._weather(key, answer)
        return answer

    async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Return the answer that a failed call kept back."""
        await self._weather()
        return self._untold.pop(key, None)

    async def cancel(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        """Do as `find`: nothing is ever left open."""
        return await self.find(key, order_id, amount)

    async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> str:
        """Give a reference for the refund of *reference*."""
        await self._weather()
        return f"sim_{derived_id(reference.removeprefix('sim_'), key)}"

    async def close(self) -> None:
        """There is no line to hang up."""

    async def _weather(self, key: str | None = None, answer: ChargeResult | None = None) -> None:
        if self._latency_seconds:
            await self._clock.sleep(self._latency_seconds)
        if self._failure_rate and self._rng.random() < self._failure_rate:
            if self._rng.random() < 0.5:
                raise GatewayNotReached("simulated: the connection was refused")
            if key is not None and answer is not None:
                self._untold[key] = answer
            raise GatewayTimeout("simulated: no answer came back")
