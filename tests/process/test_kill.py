"""Killed again and again under load, the house loses nothing and does nothing twice."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

import pytest

from tests.process.client import Client
from tests.process.conftest import Serve
from tests.process.crowd import BUYERS, STOCK, Crowd
from tests.process.invariants import check_world
from tests.process.server import APART, Server

KILLS = 20
KILLS_AT_START = 4


@pytest.mark.slow
@pytest.mark.parametrize("files", [{}, APART], ids=["the short way", "over the bus"])
async def test_killed_again_and_again_it_loses_nothing(
    files: dict[str, str], serve: Serve, connect: Callable[[Server], Client]
) -> None:
    """Whatever was answered with 202 is there after any number of kills, at its end, paid and shipped at most once."""
    seed = int(os.environ.get("KILL_SEED", random.randrange(2**32)))
    print(f"KILL_SEED={seed}")
    rng = random.Random(seed)
    server = await asyncio.to_thread(serve, **files)
    client = connect(server)
    for product_id, count in STOCK.items():
        await client.stock(product_id, count)
    crowd = Crowd(client, rng)
    crowd.is_up.set()
    at_start = set(rng.sample(range(KILLS), KILLS_AT_START))

    async with asyncio.TaskGroup() as group:
        for _ in range(BUYERS):
            group.create_task(crowd.buy())
        group.create_task(crowd.restock())
        for number in range(KILLS):
            await asyncio.sleep(rng.uniform(0.05, 0.9))
            crowd.is_up.clear()
            await asyncio.to_thread(server.kill)
            if number in at_start:
                server.launch()
                await asyncio.sleep(rng.uniform(0.2, 1.5))  # into its start, or into its recovery
                await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            crowd.is_up.set()
        await asyncio.sleep(0.5)
        crowd.is_over = True

    orders = await check_world(client, crowd.accepted, crowd.pieces, unheard_max=crowd.unheard)
    print(f"{len(orders)} orders, {len(crowd.accepted)} accepted, {crowd.unheard} answers lost without a key")
    reasons = {order["reason"] for order in orders}
    assert reasons == {None, "insufficient_stock", "requested"}, "the load was to meet every end"
    assert all(order["status"] == "cancelled" for order in orders if order["order_id"] in crowd.cancelled)
    assert server.stderr == ""
