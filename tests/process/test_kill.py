"""A server that is killed repeatedly under load loses nothing and does nothing twice."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

import pytest

from tests.process.client import Client
from tests.process.conftest import Serve
from tests.process.invariants import check_invariants
from tests.process.server import SEPARATE_DATABASES, Server
from tests.process.workload import BUYERS, STOCK, Workload

KILLS = int(os.environ.get("KILLS", "6"))
"""How often each server is killed; `tox -e night` kills it more often."""
KILLS_AT_START = KILLS // 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="local delivery"),
        pytest.param(SEPARATE_DATABASES, marks=pytest.mark.night, id="over the bus"),
        pytest.param({"HTTP_WORKERS": "2"}, marks=pytest.mark.night, id="HTTP workers"),
    ],
)
async def test_a_server_killed_repeatedly_under_load_loses_nothing(
    more: dict[str, str], serve: Serve, connect: Callable[[Server], Client]
) -> None:
    """Every order answered with 202 reaches a final state and is charged and shipped at most once."""
    seed = int(os.environ.get("KILL_SEED", random.randrange(2**32)))
    print(f"KILL_SEED={seed}")
    rng = random.Random(seed)
    server = await asyncio.to_thread(serve, **more)
    client = connect(server)
    for product_id, count in STOCK.items():
        await client.stock(product_id, count)
    workload = Workload(client, rng)
    workload.server_is_up.set()
    at_start = set(rng.sample(range(KILLS), KILLS_AT_START))

    async with asyncio.TaskGroup() as group:
        for _ in range(BUYERS):
            group.create_task(workload.buy())
        group.create_task(workload.restock())
        for number in range(KILLS):
            await asyncio.sleep(rng.uniform(0.05, 0.9))
            workload.server_is_up.clear()
            await asyncio.to_thread(server.kill)
            if number in at_start:
                server.launch()
                await asyncio.sleep(rng.uniform(0.2, 1.5))  # during the start or the recovery
                await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            workload.server_is_up.set()
        await asyncio.sleep(0.5)
        workload.is_stopped = True

    orders = await check_invariants(
        client, workload.accepted, workload.stock, lost_responses_max=workload.lost_responses
    )
    print(
        f"{len(orders)} orders, {len(workload.accepted)} accepted, {workload.lost_responses} responses lost without a key"
    )
    reasons = {order["reason"] for order in orders}
    assert reasons == {None, "insufficient_stock", "requested"}, "the workload must reach every final state"
    assert all(order["status"] == "cancelled" for order in orders if order["order_id"] in workload.cancelled)
    assert server.stderr == ""
