"""The overview of one process, with HTTP workers and without."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.process.client import Client
from tests.process.conftest import Serve
from tests.process.server import Server

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("workers", ["0", "1"])
async def test_the_overview_counts_orders_and_follows_them(serve: Serve, connect: Callable[[Server], Client], workers: str) -> None:
    """Also through a worker, which passes the stream on; the stream sends the next order without being asked."""
    server = serve(HTTP_WORKERS=workers)
    client = connect(server)
    await client.stock("SKU-1", 5)
    for _ in range(2):
        await client.wait_until_final(await client.place({"SKU-1": 1}))
    await client.wait_until_final(await client.place({"SKU-1": 9}))
    shown = await client.get("/v1/overview")
    assert shown["orders"]["by_status"] == {"processing": 0, "reserved": 0, "confirmed": 2, "cancelled": 1}
    assert shown["orders"]["oldest_waiting"] is None
    assert shown["orders"]["accepted_per_s"] > 0
    assert list(shown["modules"]) == ["orders", "inventory", "payments"]
    assert shown["bus"]["name"] == "memory"
    assert (await client.request("GET", "/v1/overview?module=orders")).status == 400

    events = overviews(client, server)
    first = await anext(events)
    assert first["orders"]["by_status"]["confirmed"] == 2
    await client.place({"SKU-1": 1})
    async for event in events:
        if event["orders"]["by_status"]["confirmed"] == 3:
            break
    await events.aclose()


async def overviews(client: Client, server: Server) -> Any:
    """Yield the overviews that the stream sends."""
    async with client._session.get(server.url_of("/v1/overview/stream")) as response:
        assert response.content_type == "text/event-stream"
        async for line in response.content:
            if line.startswith(b"data:"):
                yield json.loads(line.removeprefix(b"data:"))
