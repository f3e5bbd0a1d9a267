"""Two replicas of each module on PostgreSQL: they share the database, the durable and the work; nothing happens twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.process.client import RESPONSE_LOST, Client
from tests.process.server import run
from tests.split.conftest import Build
from tests.split.invariants import check_system
from tests.split.system import MODULES, System

BUYERS = 200
PIECES = 10


@pytest.fixture
def databases(postgres: PostgresServer) -> Iterator[dict[str, str]]:
    """An empty database for each module; their server runs again after the test."""
    yield {module: postgres.create_database() for module in MODULES}
    postgres.start()


@pytest.fixture
def replicas(build: Build, databases: dict[str, str]) -> System:
    """Six running processes, two for each module, on migrated databases."""
    system = build(replicas=2, databases=databases, NATS_ACK_WAIT_S="4")
    for module in MODULES:
        server = system.servers[module][0]
        done = run(server.folder, "migrate", **server.settings)
        assert done.returncode == 0, done.stderr
    return system.start()


@pytest.mark.slow
async def test_six_processes_sell_the_last_ten_pieces_once(
    replicas: System, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Of two hundred orders ten get the last ten pieces, whichever replica decides; the same holds for two products."""
    client = connect(replicas)
    for product_id in ("SKU-1", "SKU-A", "SKU-B"):
        await client.stock(product_id, PIECES)
    baskets = ({"SKU-1": 1}, {"SKU-A": 1, "SKU-B": 1}, {"SKU-1": 1}, {"SKU-B": 1, "SKU-A": 1})
    accepted = await asyncio.gather(*(client.place(baskets[number % 4]) for number in range(BUYERS)))
    async with asyncio.timeout(15.0):  # a stream may be open at one replica while the other one processes the order
        await asyncio.gather(*(client.wait_until_final(order_id) for order_id in accepted[:20]))
    orders = await check_system(client, replicas, broker, accepted, dict.fromkeys(("SKU-1", "SKU-A", "SKU-B"), PIECES))
    assert Counter((order["status"], order["reason"]) for order in orders) == {
        ("confirmed", None): 2 * PIECES,
        ("cancelled", "insufficient_stock"): BUYERS - 2 * PIECES,
    }
    for product_id in ("SKU-1", "SKU-A", "SKU-B"):
        product = await client.get(f"/v1/inventory/{product_id}")
        assert (product["on_hand"], product["reserved"], product["available"]) == (0, 0, 0)
    assert replicas.stderr == ""


@pytest.mark.slow
async def test_the_second_replica_continues_when_the_first_is_killed(
    replicas: System, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """One replica of each module is killed under load, one after the other: the others continue, nothing happens twice."""
    client = connect(replicas)
    await client.stock("SKU-1", 100_000)
    rng = random.Random(7)
    accepted: set[str] = set()
    is_stopped = False

    async def buy(number: int) -> None:
        count = 0
        while not is_stopped:
            count += 1
            key = f"buyer-{number}-{count}"
            while True:
                try:
                    reply = await client.post({"SKU-1": 1}, key)
                except RESPONSE_LOST:
                    await asyncio.sleep(0.01)  # this server was just killed; the other replica knows the key
                    continue
                if reply.status != 503:
                    break
                await asyncio.sleep(0.05)
            assert reply.status == 202, reply.text
            accepted.add(reply.body["order_id"])
            await asyncio.sleep(rng.uniform(0, 0.05))  # the rate of a client

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(buy(number))
        for module in rng.sample(MODULES, len(MODULES)):
            await asyncio.sleep(rng.uniform(0.3, 1.0))
            await asyncio.to_thread(replicas.kill, replicas.servers[module][0])
        await asyncio.sleep(1.0)
        for module in MODULES:
            await asyncio.to_thread(replicas.restart, replicas.servers[module][0])
        is_stopped = True
    orders = await check_system(client, replicas, broker, accepted, {"SKU-1": 100_000})
    print(f"{len(orders)} orders")
    assert {order["status"] for order in orders} == {"confirmed"}
    assert replicas.stderr == ""
