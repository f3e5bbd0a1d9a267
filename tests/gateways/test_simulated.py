"""The simulated gateway keeps the contract."""

from __future__ import annotations

import pytest

from app.clock import SystemClock
from app.gateways.simulated import SimulatedGateway
from tests.gateways.contract import GatewayContract, Made


class TestSimulated(GatewayContract):
    """It knows a repeated key without keeping a ledger."""

    @pytest.fixture
    def made(self) -> Made:
        return Made(SimulatedGateway(SystemClock(), decline_over=100_000), declining_amount=100_001)
