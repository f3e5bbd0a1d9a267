"""Two of each part on PostgreSQL: they share one database, one durable and all the work, and do nothing twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.process.client import LOST, Client
from tests.process.server import run
from tests.split.conftest import Build
from tests.split.system import MODULES, System
from tests.split.world import look_at_the_whole

BUYERS = 200
PIECES = 10


@pytest.fixture
def databases(postgres: PostgresServer) -> Iterator[dict[str, str]]:
    """An empty database for each module; whatever happens to their server, it runs again afterwards."""
    yield {module: postgres.create_database() for module in MODULES}
    postgres.start()


@pytest.fixture
def pairs(build: Build, databases: dict[str, str]) -> System:
    """Six processes that run, on tables that an operator has made."""
    system = build(replicas=2, databases=databases, NATS_ACK_WAIT_S="4")
    for module in MODULES:
        server = system.parts[module][0]
        done = run(server.folder, "migrate", **server.settings)
        assert done.returncode == 0, done.stderr
    return system.start()


@pytest.mark.slow
async def test_six_processes_sell_the_last_ten_pieces_once(
    pairs: System, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Two hundred want the last ten: ten get them, whichever of two replicas decides about each; so it is with pairs."""
    client = connect(pairs)
    for product_id in ("SKU-1", "SKU-A", "SKU-B"):
        await client.stock(product_id, PIECES)
    wishes = ({"SKU-1": 1}, {"SKU-A": 1, "SKU-B": 1}, {"SKU-1": 1}, {"SKU-B": 1, "SKU-A": 1})
    accepted = await asyncio.gather(*(client.place(wishes[number % 4]) for number in range(BUYERS)))
    async with asyncio.timeout(15.0):  # whoever follows an order may ask one replica while the other handles it
        await asyncio.gather(*(client.followed(order_id) for order_id in accepted[:20]))
    orders = await look_at_the_whole(
        client, pairs, broker, accepted, dict.fromkeys(("SKU-1", "SKU-A", "SKU-B"), PIECES)
    )
    assert Counter((order["status"], order["reason"]) for order in orders) == {
        ("confirmed", None): 2 * PIECES,
        ("cancelled", "insufficient_stock"): BUYERS - 2 * PIECES,
    }
    for product_id in ("SKU-1", "SKU-A", "SKU-B"):
        product = await client.get(f"/v1/inventory/{product_id}")
        assert (product["on_hand"], product["reserved"], product["available"]) == (0, 0, 0)
    assert pairs.stderr == ""


@pytest.mark.slow
async def test_one_of_each_pair_dies_and_the_other_goes_on(
    pairs: System, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """SIGKILL of one replica of each module under load, one after the other: the others carry on, nothing happens twice."""
    client = connect(pairs)
    await client.stock("SKU-1", 100_000)
    rng = random.Random(7)
    accepted: set[str] = set()
    is_over = False

    async def buy(number: int) -> None:
        count = 0
        while not is_over:
            count += 1
            key = f"buyer-{number}-{count}"
            while True:
                try:
                    reply = await client.post({"SKU-1": 1}, key)
                except LOST:
                    await asyncio.sleep(0.01)  # its server has just died; the other knows the key
                    continue
                if reply.status != 503:
                    break
                await asyncio.sleep(0.05)
            assert reply.status == 202, reply.text
            accepted.add(reply.body["order_id"])
            await asyncio.sleep(rng.uniform(0, 0.05))  # the pace of customers

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(buy(number))
        for module in rng.sample(MODULES, len(MODULES)):
            await asyncio.sleep(rng.uniform(0.3, 1.0))
            await asyncio.to_thread(pairs.kill, pairs.parts[module][0])
        await asyncio.sleep(1.0)
        for module in MODULES:
            await asyncio.to_thread(pairs.revive, pairs.parts[module][0])
        is_over = True
    orders = await look_at_the_whole(client, pairs, broker, accepted, {"SKU-1": 100_000})
    print(f"{len(orders)} orders")
    assert {order["status"] for order in orders} == {"confirmed"}
    assert pairs.stderr == ""
