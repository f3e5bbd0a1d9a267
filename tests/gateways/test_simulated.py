"""The simulated gateway passes the contract suite, and decides by its rule."""

from __future__ import annotations

import random

import pytest

from app.clock import SystemClock
from app.gateways.port import Captured, ChargeDetails, Declined, Gateway, GatewayTimeout
from app.gateways.simulated import SimulatedGateway
from modules.values import Money
from tests.gateways.contract import GatewayCase, GatewayContract, ProviderFault, new_order_id


class TestSimulated(GatewayContract):
    """It recognises a repeated key without a stored ledger."""

    @pytest.fixture
    def case(self) -> GatewayCase:
        gateway = SimulatedGateway(SystemClock(), decline_over=100_000)
        faults = {ProviderFault.AWAY: lambda: failing(0.0), ProviderFault.FAILING: lambda: failing(0.99)}
        return GatewayCase(gateway, declining_amount=100_001, faults=faults)


class Drawn(random.Random):
    """A generator that draws the same number each time."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def random(self) -> float:
        return self.number


def failing(number: float) -> Gateway:
    """Return a gateway all of whose calls fail; below a half, before they have an effect."""
    return SimulatedGateway(SystemClock(), failure_rate=1.0, rng=Drawn(number))


@pytest.mark.parametrize(("cents", "kind"), [(100, Captured), (101, Declined)])
async def test_a_charge_whose_response_got_lost_is_found_by_a_look_up(cents: int, kind: type) -> None:
    """It is captured up to the limit, and declined above it."""
    rng, order_id, amount = Drawn(0.8), new_order_id(), Money(cents, "EUR")
    gateway = SimulatedGateway(SystemClock(), decline_over=100, failure_rate=0.9, rng=rng)
    with pytest.raises(GatewayTimeout):
        await gateway.charge("k", order_id, amount, ChargeDetails())
    rng.number = 0.95
    found = await gateway.find("k", order_id, amount)
    assert type(found) is kind
    assert await gateway.charge("k", order_id, amount, ChargeDetails()) == found
