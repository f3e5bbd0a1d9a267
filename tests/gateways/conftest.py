from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.gateways.fault import FaultyStripe
from tests.gateways.local import LocalStripe


@pytest.fixture(scope="session")
def localstripe() -> Iterator[LocalStripe]:
    """One localstripe server for all tests; each test uses orders of its own."""
    server = LocalStripe()
    yield server.start()
    server.kill()


@pytest.fixture
async def faulty() -> AsyncIterator[FaultyStripe]:
    """A provider that fails as the test configures it."""
    server = await FaultyStripe().start()
    yield server
    await server.stop()
