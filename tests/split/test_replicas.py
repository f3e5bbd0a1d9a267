"""Two replicas of each module on PostgreSQL: they share the database, the durable and the work; nothing happens twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.process.client import RESPONSE_LOST, Client, eventually
from tests.process.server import Server, run
from tests.split.conftest import Build
from tests.split.invariants import check_system, consumers_of
from tests.split.system import MODULES, System

BUYERS = 200
PIECES = 10


@pytest.fixture
def databases(postgres: PostgresServer) -> Iterator[dict[str, str]]:
    """An empty database for each module; their server runs again after the test."""
    yield {module: postgres.create_database() for module in MODULES}
    postgres.start()


async def leader_of(client: Client, servers: Sequence[Server]) -> Server:
    """Return the one of *servers*, replicas of a module, that leads it; wait until exactly one does."""

    async def leaders() -> list[Server]:
        return [server for server in servers if await value_of(client, server, "module_leader")]

    (leader,) = await eventually(leaders, lambda found: len(found) == 1)
    return leader


async def handled_by(client: Client, server: Server) -> float:
    """Return how many messages *server* has handled."""
    return await value_of(client, server, "messages_handled_total")


async def value_of(client: Client, server: Server, metric: str) -> float:
    """Return the sum of *metric* over its labels, as *server* shows it."""
    page = (await client.request_url(f"{server.url}/metrics")).text
    return sum(
        sample.value
        for each in text_string_to_metric_families(page)
        for sample in each.samples
        if sample.name == metric
    )


def start(system: System) -> System:
    """Start *system* on migrated databases."""
    for module in MODULES:
        server = system.servers[module][0]
        done = run(server.folder, "migrate", **server.settings)
        assert done.returncode == 0, done.stderr
    return system.start()


@pytest.fixture
def replicas(build: Build, databases: dict[str, str]) -> System:
    """Six running processes, two for each module, on migrated databases."""
    return start(build(replicas=2, databases=databases, NATS_ACK_WAIT_S="4"))


@pytest.mark.night
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
async def test_one_replica_receives_the_messages_and_another_one_continues_when_it_is_killed(
    build: Build, databases: dict[str, str], broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """New orders wait for none of the long times: neither for ``ack_wait``, nor for a request of the killed process."""
    replicas = start(build(replicas=2, databases=databases, NATS_ACK_WAIT_S="60"))
    client = connect(replicas)
    await client.stock("SKU-1", 1_000)
    leaders = {module: await leader_of(client, replicas.servers[module]) for module in MODULES}

    async def waiting() -> list[int]:
        return [consumer["num_waiting"] for consumer in consumers_of(broker).values()]

    await eventually(waiting, all)  # each leader has requested messages in advance
    accepted = [await client.place({"SKU-1": 1}) for _ in range(20)]
    for order_id in accepted:
        assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    for module in MODULES:
        handled = {server: await handled_by(client, server) for server in replicas.servers[module]}
        assert handled.pop(leaders[module]) > 0
        assert list(handled.values()) == [0]
    for server in leaders.values():
        replicas.kill(server)
    more = [await client.place({"SKU-1": 1}) for _ in range(20)]
    async with asyncio.timeout(30):  # half of ack_wait
        for order_id in more:
            assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    for module, killed in leaders.items():
        (other,) = set(replicas.servers[module]) - {killed}
        assert await leader_of(client, [other]) is other
        await asyncio.to_thread(replicas.restart, killed)
    await check_system(client, replicas, broker, {*accepted, *more}, {"SKU-1": 1_000})
    assert replicas.stderr == ""


@pytest.mark.night
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
