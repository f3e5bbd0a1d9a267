from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer

from tests.cli.loadtest.fake import FakeShop


@pytest.fixture
async def shop() -> AsyncIterator[FakeShop]:
    """A shop that is open; a test says how it misbehaves before it runs anything against it."""
    shop = FakeShop()
    async with TestServer(shop.app()) as server:
        shop.url = str(server.make_url("")).rstrip("/")
        yield shop
