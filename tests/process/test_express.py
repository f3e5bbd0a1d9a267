"""The express lane in one process; ``tests/split/test_express.py`` tests it over NATS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.process.client import Client
from tests.process.conftest import Serve
from tests.process.invariants import check_invariants, rows
from tests.process.server import Server

BULK = 1_500
LATENCY_SECONDS = 0.2


@pytest.mark.slow
async def test_an_express_order_overtakes_orders_that_wait_for_the_provider(
    serve: Serve, connect: Callable[[Server], Client]
) -> None:
    """With more than a thousand charges queued at a slow provider, an express order ends before most of them."""
    client = connect(serve(SIMULATED_LATENCY_MS=str(LATENCY_SECONDS * 1000)))
    await client.stock("SKU-1", 100_000)
    accepted = await asyncio.gather(*(client.place({"SKU-1": 1}) for _ in range(BULK)))
    began = time.monotonic()
    express = await client.place({"SKU-1": 1}, priority="express")
    assert (await client.wait_until_final(express))["status"] == "confirmed"
    seconds = time.monotonic() - began
    ((confirmed,),) = rows(
        client.server.database_of("orders"), "SELECT count(*) FROM orders_order WHERE status = 'confirmed'"
    )
    print(f"express: after {seconds:.3f} s, with {confirmed - 1} of {BULK} bulk orders done")
    assert confirmed < BULK * 0.9, "there was no backlog to overtake"
    orders = await check_invariants(client, [*accepted, express], {"SKU-1": 100_000})
    assert {order["status"] for order in orders} == {"confirmed"}
