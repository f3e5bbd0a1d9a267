"""Everything is killed, one after the other and all at once, while people go on buying."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.nats import NatsServer
from tests.process.client import Client
from tests.process.crowd import STOCK, Crowd
from tests.split.conftest import Build
from tests.split.system import MODULES, System
from tests.split.world import look_at_the_whole

ACK_WAIT_SECONDS = 3
BUYERS = 6
ROUNDS = 4
BROKER_KILLS = 3
MIXED_KILLS = 12


@asynccontextmanager
async def crowd_at(system: System, client: Client, rng: random.Random) -> AsyncIterator[Crowd]:
    """Enter for a crowd that buys until the end of the block."""
    for product_id, count in STOCK.items():
        await client.stock(product_id, count)
    crowd = Crowd(client, rng)
    crowd.is_up.set()
    async with asyncio.TaskGroup() as group:
        for _ in range(BUYERS):
            group.create_task(crowd.buy())
        group.create_task(crowd.restock())
        yield crowd
        await asyncio.sleep(0.5)
        crowd.is_over = True


async def kill_part(system: System, crowd: Crowd, module: str, away_seconds: float) -> None:
    """Kill the process of *module*; start it again *away_seconds* later."""
    (server,) = system.parts[module]
    if module == "orders":
        crowd.is_up.clear()  # nobody to sell: asking in vain all the time would only heat the machine
    await asyncio.to_thread(system.kill, server)
    await asyncio.sleep(away_seconds)
    await asyncio.to_thread(system.revive, server)
    if module == "orders":
        crowd.is_up.set()


async def kill_broker(broker: NatsServer, away_seconds: float) -> None:
    """Kill the broker; start it again *away_seconds* later."""
    await asyncio.to_thread(broker.kill)
    await asyncio.sleep(away_seconds)
    await asyncio.to_thread(broker.start)


def rng_of_today() -> random.Random:
    """Return dice that can be thrown again: KILL_SEED sets them."""
    seed = int(os.environ.get("KILL_SEED", random.randrange(2**32)))
    print(f"KILL_SEED={seed}")
    return random.Random(seed)


async def see_it_through(client: Client, system: System, broker: NatsServer, crowd: Crowd) -> None:
    """Check the world once it has come to rest."""
    orders = await look_at_the_whole(
        client, system, broker, crowd.accepted, crowd.pieces, unheard_max=crowd.unheard, seconds=60.0
    )
    print(f"{len(orders)} orders, {len(crowd.accepted)} accepted, {crowd.unheard} answers lost without a key")
    reasons = {order["reason"] for order in orders}
    assert reasons == {None, "insufficient_stock", "requested"}, "the load was to meet every end"
    assert all(order["status"] == "cancelled" for order in orders if order["order_id"] in crowd.cancelled)
    assert system.stderr == ""


@pytest.mark.slow
async def test_each_part_killed_in_turn_loses_nothing(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Whatever was answered with 202 comes to its end, paid and shipped at most once, whoever dies in between."""
    rng = rng_of_today()
    system = build(NATS_ACK_WAIT_S=str(ACK_WAIT_SECONDS)).start()
    client = connect(system)
    async with crowd_at(system, client, rng) as crowd:
        for _ in range(ROUNDS):
            for module in rng.sample(MODULES, len(MODULES)):
                await asyncio.sleep(rng.uniform(0.05, 0.9))
                await kill_part(system, crowd, module, rng.uniform(0, 0.3))
    await see_it_through(client, system, broker, crowd)


@pytest.mark.slow
async def test_the_broker_killed_again_and_again_loses_nothing(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """POST goes on as if nothing were; what the broker had in hand comes again."""
    rng = rng_of_today()
    system = build(NATS_ACK_WAIT_S=str(ACK_WAIT_SECONDS)).start()
    client = connect(system)
    async with crowd_at(system, client, rng) as crowd:
        for _ in range(BROKER_KILLS):
            await asyncio.sleep(rng.uniform(0.5, 2.0))
            await kill_broker(broker, rng.uniform(0, 2.0))
    assert crowd.unheard == 0, "a POST was reset although nobody killed its server"
    await see_it_through(client, system, broker, crowd)


@pytest.mark.slow
async def test_everything_killed_at_once_loses_nothing(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Parts and broker die in any order and while others are down."""
    rng = rng_of_today()
    system = build(NATS_ACK_WAIT_S=str(ACK_WAIT_SECONDS)).start()
    client = connect(system)

    async def kill_now_and_then(module: str) -> None:
        for _ in range(MIXED_KILLS // len(MODULES)):
            await asyncio.sleep(rng.uniform(0.2, 2.0))
            await kill_part(system, crowd, module, rng.uniform(0, 0.5))

    async with crowd_at(system, client, rng) as crowd, asyncio.TaskGroup() as group:
        for module in MODULES:
            group.create_task(kill_now_and_then(module))
        for _ in range(BROKER_KILLS):
            await asyncio.sleep(rng.uniform(0.5, 3.0))
            await kill_broker(broker, rng.uniform(0, 1.0))
    await see_it_through(client, system, broker, crowd)
