from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.gateways.fault import FaultyStripe
from tests.gateways.local import LocalStripe


@pytest.fixture(scope="session")
def localstripe() -> Iterator[LocalStripe]:
    """One for all tests; each uses orders of its own."""
    server = LocalStripe()
    yield server.start()
    server.end()


@pytest.fixture
async def faulty() -> AsyncIterator[FaultyStripe]:
    """A provider in any weather."""
    server = await FaultyStripe().start()
    yield server
    await server.stop()
