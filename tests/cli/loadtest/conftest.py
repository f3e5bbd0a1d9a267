from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer

from tests.cli.loadtest.fake_server import FakeServer


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    """A running fake server; a test sets its faults before it sends requests."""
    server = FakeServer()
    async with TestServer(server.app()) as listener:
        server.url = str(listener.make_url("")).rstrip("/")
        yield server
