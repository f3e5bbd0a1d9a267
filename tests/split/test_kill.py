"""Processes and broker are killed under load, one after the other and at the same time."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.nats import NatsServer
from tests.process.client import Client, eventually
from tests.process.invariants import rows
from tests.process.workload import STOCK, Workload
from tests.split.conftest import Build
from tests.split.invariants import check_system
from tests.split.system import MODULES, System

ACK_WAIT_SECONDS = 3
BUYERS = 6
ROUNDS = 4
BROKER_KILLS = 3
MIXED_KILLS = 12


@asynccontextmanager
async def running_workload(system: System, client: Client, rng: random.Random) -> AsyncIterator[Workload]:
    """Run a workload until the end of the block."""
    for product_id, count in STOCK.items():
        await client.stock(product_id, count)
    workload = Workload(client, rng)
    workload.server_is_up.set()
    async with asyncio.TaskGroup() as group:
        for _ in range(BUYERS):
            group.create_task(workload.buy())
        group.create_task(workload.restock())
        yield workload
        await asyncio.sleep(0.5)
        workload.is_stopped = True


async def kill_process(system: System, workload: Workload, module: str, down_seconds: float) -> None:
    """Kill the process of *module*; start it again *down_seconds* later."""
    (server,) = system.servers[module]
    if module == "orders":
        workload.server_is_up.clear()  # without a server the buyers must not retry all the time
    await asyncio.to_thread(system.kill, server)
    await asyncio.sleep(down_seconds)
    await asyncio.to_thread(system.restart, server)
    if module == "orders":
        workload.server_is_up.set()


async def kill_broker(broker: NatsServer, down_seconds: float) -> None:
    """Kill the broker; start it again *down_seconds* later."""
    await asyncio.to_thread(broker.kill)
    await asyncio.sleep(down_seconds)
    await asyncio.to_thread(broker.start)


def seeded_rng() -> random.Random:
    """Return a random generator whose seed is printed; KILL_SEED sets it."""
    seed = int(os.environ.get("KILL_SEED", random.randrange(2**32)))
    print(f"KILL_SEED={seed}")
    return random.Random(seed)


async def check_after(client: Client, system: System, broker: NatsServer, workload: Workload) -> None:
    """Wait until the system is idle, then check its invariants and the results of the workload."""
    orders = await check_system(
        client,
        system,
        broker,
        workload.accepted,
        workload.stock,
        lost_responses_max=workload.lost_responses,
        seconds=60.0,
    )
    print(
        f"{len(orders)} orders, {len(workload.accepted)} accepted, {workload.lost_responses} responses lost without a key"
    )
    reasons = {order["reason"] for order in orders}
    assert reasons == {None, "insufficient_stock", "requested"}, "the workload must reach every final state"
    assert all(order["status"] == "cancelled" for order in orders if order["order_id"] in workload.cancelled)
    assert system.stderr == ""


@pytest.mark.slow
async def test_a_charge_that_is_in_hand_when_payments_is_killed_is_made_after_the_restart(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Its request never left the process; the outbox row is still unsent, so the next process sends it over the bus."""
    system = build(SIMULATED_LATENCY_MS="600000").start()
    client = connect(system)
    await client.stock("SKU-1", 10)
    orders = [await client.place({"SKU-1": 1}) for _ in range(5)]
    (payments,) = system.servers["payments"]
    sql = "SELECT count(*) FROM payments_outbox WHERE subject = 'payments.charge_requested.v1' AND sent_at IS NULL"

    async def requested() -> int:
        return int(rows(system.database_of("payments"), sql)[0][0])

    await eventually(requested, lambda count: count == len(orders))
    await asyncio.to_thread(system.kill, payments)
    payments.settings["SIMULATED_LATENCY_MS"] = "0"
    await asyncio.to_thread(system.restart, payments)
    await check_system(client, system, broker, orders, {"SKU-1": 10})
    for order_id in orders:
        assert (await client.get(f"/v1/orders/{order_id}"))["status"] == "confirmed"


@pytest.mark.night
async def test_nothing_is_lost_when_each_process_is_killed_in_turn(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Every order answered with 202 reaches a final state and is charged and shipped at most once."""
    rng = seeded_rng()
    system = build(NATS_ACK_WAIT_S=str(ACK_WAIT_SECONDS)).start()
    client = connect(system)
    async with running_workload(system, client, rng) as workload:
        for _ in range(ROUNDS):
            for module in rng.sample(MODULES, len(MODULES)):
                await asyncio.sleep(rng.uniform(0.05, 0.9))
                await kill_process(system, workload, module, rng.uniform(0, 0.3))
    await check_after(client, system, broker, workload)


@pytest.mark.night
async def test_nothing_is_lost_when_the_broker_is_killed_repeatedly(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """POST is not affected; messages in flight are delivered again."""
    rng = seeded_rng()
    system = build(NATS_ACK_WAIT_S=str(ACK_WAIT_SECONDS)).start()
    client = connect(system)
    async with running_workload(system, client, rng) as workload:
        for _ in range(BROKER_KILLS):
            await asyncio.sleep(rng.uniform(0.5, 2.0))
            await kill_broker(broker, rng.uniform(0, 2.0))
    assert workload.lost_responses == 0, "a POST was reset although its server was not killed"
    await check_after(client, system, broker, workload)


@pytest.mark.slow
async def test_nothing_is_lost_when_processes_and_broker_are_killed_together(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Processes and broker are killed in any order, also while others are down."""
    rng = seeded_rng()
    system = build(NATS_ACK_WAIT_S=str(ACK_WAIT_SECONDS)).start()
    client = connect(system)

    async def kill_repeatedly(module: str) -> None:
        for _ in range(MIXED_KILLS // len(MODULES)):
            await asyncio.sleep(rng.uniform(0.2, 2.0))
            await kill_process(system, workload, module, rng.uniform(0, 0.5))

    async with running_workload(system, client, rng) as workload, asyncio.TaskGroup() as group:
        for module in MODULES:
            group.create_task(kill_repeatedly(module))
        for _ in range(BROKER_KILLS):
            await asyncio.sleep(rng.uniform(0.5, 3.0))
            await kill_broker(broker, rng.uniform(0, 1.0))
    await check_after(client, system, broker, workload)
