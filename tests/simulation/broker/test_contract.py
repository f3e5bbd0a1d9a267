"""The JetStream adapter passes the contract suite on a simulated server, on a virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from tests.bus.contract import BusContract
from tests.simulation.broker.harness import SimulatedHarness


@pytest.fixture
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[SimulatedHarness]:
    """A bus on a server of its own; at the end of the test it must have no task left."""
    async with SimulatedHarness.start(random.Random(1), **getattr(request, "param", {})) as harness:
        yield harness
    assert asyncio.all_tasks() == {asyncio.current_task()}


class TestSimulatedJetStream(BusContract):
    """The contract suite, where a real server is simulated."""
