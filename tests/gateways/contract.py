"""
The contract of every gateway; the test file of an adapter provides a `GatewayCase` fixture.

The gateway's promises hold for a caller that looks a charge up before it charges again, as the payment worker does.
"""

from __future__ import annotations

__all__ = ["GatewayCase", "GatewayContract", "new_order_id"]

import pytest
from attrs import frozen
from uuid_utils import uuid7

from app.gateways.port import Captured, ChargeDetails, ChargeResult, Declined, Gateway, Refunded
from modules.values import Money


@frozen
class GatewayCase:
    """A gateway, and a charge that it declines."""

    gateway: Gateway
    declining_amount: int = 100
    declining_method: str | None = None


def new_order_id() -> str:
    """Return the id of an order that was placed just now."""
    return str(uuid7())


async def find_or_charge(gateway: Gateway, order_id: str, amount: Money, method: str | None = None) -> ChargeResult:
    """Look the charge up, and charge if there is none."""
    key = f"charge:{order_id}"
    return await gateway.find(key, order_id, amount) or await gateway.charge(key, order_id, amount, ChargeDetails(method))


class GatewayContract:
    """Inherit, and provide the fixture *case*."""

    @pytest.fixture
    def case(self) -> GatewayCase:
        raise NotImplementedError

    async def test_a_charge_is_captured_under_a_reference(self, case: GatewayCase) -> None:
        """Each order has a reference of its own."""
        results = [await find_or_charge(case.gateway, new_order_id(), Money(100, "EUR")) for _ in range(3)]
        assert all(isinstance(result, Captured) for result in results)
        assert len({result.reference for result in results if isinstance(result, Captured)}) == 3

    async def test_charging_the_same_order_again_returns_the_same_charge(self, case: GatewayCase) -> None:
        """The result is the same, however often the charge is requested."""
        order_id, amount = new_order_id(), Money(1250, "EUR")
        first = await find_or_charge(case.gateway, order_id, amount)
        assert isinstance(first, Captured)
        assert [await find_or_charge(case.gateway, order_id, amount) for _ in range(3)] == [first] * 3

    async def test_a_declined_charge_stays_declined(self, case: GatewayCase) -> None:
        """The same order is declined again, and the reason is a code without spaces."""
        order_id, amount = new_order_id(), Money(case.declining_amount, "EUR")
        first = await find_or_charge(case.gateway, order_id, amount, case.declining_method)
        assert isinstance(first, Declined)
        assert first.reason
        assert " " not in first.reason
        assert await find_or_charge(case.gateway, order_id, amount, case.declining_method) == first

    async def test_a_charge_that_was_never_made_is_not_found(self, case: GatewayCase) -> None:
        """There is nothing to cancel either."""
        order_id = new_order_id()
        for look_up in case.gateway.find, case.gateway.cancel:
            assert await look_up(f"charge:{order_id}", order_id, Money(100, "EUR")) is None

    async def test_a_refund_is_made_once(self, case: GatewayCase) -> None:
        """A repeated request returns the same refund."""
        order_id, amount = new_order_id(), Money(700, "EUR")
        charge = await find_or_charge(case.gateway, order_id, amount)
        assert isinstance(charge, Captured)
        key = f"refund:{order_id}"
        refunds = [await case.gateway.refund(key, order_id, charge.reference, amount) for _ in range(3)]
        assert isinstance(refunds[0], Refunded)
        assert refunds[0].reference
        assert refunds == [Refunded(refunds[0].reference, 700)] * 3

    async def test_each_key_makes_a_refund_of_its_own(self, case: GatewayCase) -> None:
        """A charge is refunded in parts, each under its own reference; the totals cover at least the refund itself."""
        order_id = new_order_id()
        charge = await find_or_charge(case.gateway, order_id, Money(1000, "EUR"))
        assert isinstance(charge, Captured)
        parts = [
            await case.gateway.refund(key, order_id, charge.reference, Money(amount, "EUR"))
            for key, amount in ((f"refund:{order_id}", 400), (f"refund:{order_id}:2", 600), (f"refund:{order_id}", 400))
        ]
        assert all(isinstance(part, Refunded) for part in parts)
        first, second, repeated = [part for part in parts if isinstance(part, Refunded)]
        assert first.reference == repeated.reference != second.reference
        assert first.refunded_total == 400
        assert second.refunded_total in (600, 1000)

    async def test_an_amount_of_zero_is_captured_and_refunded(self, case: GatewayCase) -> None:
        """An order may be free of charge; it is paid and refunded like any other."""
        order_id, amount = new_order_id(), Money(0, "EUR")
        charge = await find_or_charge(case.gateway, order_id, amount)
        assert isinstance(charge, Captured)
        assert isinstance(await case.gateway.refund(f"refund:{order_id}", order_id, charge.reference, amount), Refunded)

    async def test_closing_is_idempotent(self, case: GatewayCase) -> None:
        """A closed gateway can be closed again."""
        await case.gateway.close()
        await case.gateway.close()
