"""The simulated gateway passes the contract suite."""

from __future__ import annotations

import random

import pytest

from app.clock import SystemClock
from app.gateways.port import Gateway
from app.gateways.simulated import SimulatedGateway
from tests.gateways.contract import GatewayCase, GatewayContract, ProviderFault


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
