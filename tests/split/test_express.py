"""The express lane over NATS: express orders overtake a backlog, and the backlog is still processed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.nats import NatsServer
from tests.process.client import Client, eventually
from tests.process.invariants import rows
from tests.split.conftest import Build
from tests.split.invariants import check_system, consumers_of
from tests.split.system import System

BULK = 3_000


@pytest.mark.night
async def test_an_express_order_overtakes_the_backlog(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """
    With thousands of orders queued for inventory, an express order ends long before them once inventory is back.

    While express orders keep arriving as fast as they are answered, the backlog is processed as well.
    """
    system = build().start()
    client = connect(system)
    await client.stock("SKU-1", 1_000_000)
    (inventory,) = system.servers["inventory"]
    await client.wait_until_final(await client.place({"SKU-1": 1}, priority="express"))
    await asyncio.to_thread(system.kill, inventory)

    accepted: list[str] = []

    async def place_bulk(count: int) -> None:
        for _ in range(count):
            accepted.append(await client.place({"SKU-1": 1}))

    began = time.monotonic()
    await asyncio.gather(*(place_bulk(BULK // 30) for _ in range(30)))
    print(f"{BULK} bulk orders placed in {time.monotonic() - began:.1f} s")

    async def queued() -> int:
        return int(consumers_of(broker)["ORDERS/inventory"]["num_pending"])

    await eventually(queued, lambda count: count >= BULK - 300, 60.0)
    express = await client.place({"SKU-1": 1}, priority="express")

    def confirmed_bulk() -> int:
        query = "SELECT count(*) FROM orders_order WHERE NOT is_express AND status = 'confirmed'"
        ((count,),) = rows(system.database_of("orders"), query)
        return int(count)

    await asyncio.to_thread(system.restart, inventory)
    began = time.monotonic()
    assert (await client.wait_until_final(express))["status"] == "confirmed"
    first_seconds = time.monotonic() - began
    confirmed_first = confirmed_bulk()
    assert confirmed_first < BULK * 0.9, "there was no backlog to overtake"

    waits: list[float] = []
    is_stopped = False

    async def place_express() -> None:
        while not is_stopped:
            began = time.monotonic()
            order_id = await client.place({"SKU-1": 1}, priority="express")
            await client.wait_until_final(order_id)
            accepted.append(order_id)
            waits.append(time.monotonic() - began)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(place_express())

        async def confirmed() -> int:
            return confirmed_bulk()

        await eventually(confirmed, lambda count: count == BULK, 120.0)
        is_stopped = True
    waits.sort()
    print(
        f"express: the first after {first_seconds:.3f} s with {confirmed_first} bulk orders confirmed; beside the backlog"
        f" {len(waits)} more, median {waits[len(waits) // 2]:.3f} s, 99 % {waits[int(len(waits) * 0.99)]:.3f} s"
    )
    await check_system(client, system, broker, [*accepted, express], {"SKU-1": 1_000_000}, lost_responses_max=1)
