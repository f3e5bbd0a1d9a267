"""Connections to the payment provider."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from app.gateways.port import GatewayError
from app.gateways.stripe.http_session import StripeSession

PATIENCE_SECONDS = 5.0
BODY = bytes(1 << 20)
"""Does not arrive together with the head of the response."""


@pytest.mark.parametrize("status", [302, 409, 429, 500])
async def test_a_call_that_has_failed_gives_its_connection_back(status: int) -> None:
    """Although its error is kept: the next call needs the only connection."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, body=BODY)

    app = web.Application()
    app.router.add_get("/", answer)
    errors = []
    async with TestServer(app) as server:
        session = StripeSession(calls_max=1)
        for _ in range(3):
            with pytest.raises(GatewayError) as caught:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await session.request("GET", str(server.make_url("/")))
            errors.append(caught.value)
        await session.close()
