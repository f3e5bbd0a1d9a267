"""A server for all tests of a file, and a bus on it; a file that does more to its server has fixtures of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

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
