"""The stream of all orders, at a real server that is killed and started again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.process.client import Client
from tests.process.conftest import Serve
from tests.process.order_stream import OrderStream
from tests.process.server import Server

pytestmark = pytest.mark.slow


async def test_a_client_misses_no_final_state_although_the_server_is_killed(
    serve: Serve, connect: Callable[[Server], Client]
) -> None:
    """It connects again with the id of its last event; what happened without it is sent then."""
    server = serve()
    client = connect(server)
    await client.stock("SKU-1", 5)
    async with OrderStream(lambda: server.url_of("/v1/orders/stream")).following() as stream:
        first = [await client.place({"SKU-1": 1}) for _ in range(3)]
        await stream.until_final(first)
        during = [await client.place({"SKU-1": 1}) for _ in range(3)]
        server.kill()
        server.start()
        await stream.until_final(during)
        later = await client.place({"SKU-1": 1})
        await stream.until_final([later])
        assert stream.connections == 2
    statuses = [stream.seen[id]["status"] for id in (*first, *during, later)]
    assert statuses == ["confirmed"] * 5 + ["cancelled"] * 2
    for id, seen in stream.seen.items():
        assert seen == await client.get(f"/v1/orders/{id}")


@pytest.mark.parametrize("workers", ["0", "2"])
async def test_the_filters_of_the_list_select_what_is_sent(
    workers: str, serve: Serve, connect: Callable[[Server], Client]
) -> None:
    """And refuse what the list refuses; HTTP workers do not take the path for that of an order."""
    server = serve(HTTP_WORKERS=workers)
    client = connect(server)
    await client.stock("SKU-1", 1)
    async with OrderStream(lambda: server.url_of("/v1/orders/stream?status=cancelled&product_id=SKU-1")).following() as stream:
        confirmed = await client.place({"SKU-1": 1})
        cancelled = await client.place({"SKU-1": 1})
        await stream.until_final([cancelled])
        await client.cancel(confirmed)
        await stream.until_final([confirmed])
    assert {order["status"] for order in stream.seen.values()} == {"cancelled"}
    assert (await client.request("GET", "/v1/orders/stream?status=CONFIRMED")).body["code"] == "invalid_query"
    assert (await client.request("HEAD", "/v1/orders/stream")).status == 200
    assert (await client.request("POST", "/v1/orders/stream")).status == 405
