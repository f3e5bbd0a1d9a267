"""The simulated gateway passes the contract suite."""

from __future__ import annotations

import pytest

from app.clock import SystemClock
from app.gateways.simulated import SimulatedGateway
from tests.gateways.contract import GatewayCase, GatewayContract


class TestSimulated(GatewayContract):
    """It recognises a repeated key without a stored ledger."""

    @pytest.fixture
    def case(self) -> GatewayCase:
        return GatewayCase(SimulatedGateway(SystemClock(), decline_over=100_000), declining_amount=100_001)
