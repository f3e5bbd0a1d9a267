"""The JetStream adapter passes the contract suite on one real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.bus.contract import BusContract
from tests.bus.jetstream.harness import JetStreamHarness
from tests.nats import NatsServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats"), accounts=150) as server:
        yield server


@pytest.fixture
async def harness(server: NatsServer, request: pytest.FixtureRequest) -> AsyncIterator[JetStreamHarness]:
    """A bus in an account of its own; at the end of the test it must have no task left."""
    async with JetStreamHarness.on(server.account_urls(), **getattr(request, "param", {})) as harness:
        yield harness


class TestJetStreamBus(BusContract):
    """The contract suite on one node."""
