"""On PostgreSQL: the same house, a database that others can restart, and an operator who has to migrate it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.process.client import Client
from tests.process.conftest import Serve
from tests.process.crowd import BUYERS, STOCK, Crowd
from tests.process.invariants import MODULES, check_world
from tests.process.server import Server, run
from tests.process.test_start import SECRET, refused


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    """The address of an empty database; whatever happens to its server, it runs again afterwards."""
    yield postgres.create_database()
    postgres.start()


def test_an_unmigrated_database_is_refused(url: str, tmp_path: Path) -> None:
    """A database that others use as well is changed when somebody says so; `serve` says how."""
    line = refused(tmp_path, 3, "python -m app migrate", DATABASE_URL=url)
    assert "orders" in line
    first, second = run(tmp_path, "migrate", DATABASE_URL=url), run(tmp_path, "migrate", DATABASE_URL=url)
    assert (first.returncode, second.returncode, first.stderr, second.stderr) == (0, 0, "", "")
    assert all(module in first.stdout for module in MODULES)
    assert "nothing to do" in second.stdout


def test_a_database_out_of_reach_is_named_by_its_variable(url: str, tmp_path: Path) -> None:
    """And by nothing else: neither host nor password nor user."""
    away = f"postgresql://shop:{SECRET}@127.0.0.1:1/x"
    for name in ("DATABASE_URL", "PAYMENTS_DATABASE_URL"):
        line = refused(tmp_path, 3, name, command="migrate", **{"DATABASE_URL": url, name: away})
        assert line.startswith(f"fulfilment: {name}: ")
        assert "127.0.0.1" not in line
        assert "shop" not in line


@pytest.mark.slow
async def test_killed_cut_and_restarted_it_loses_nothing(
    postgres: PostgresServer, url: str, serve: Serve, connect: Callable[[Server], Client], tmp_path: Path
) -> None:
    """The server killed twice, its connections cut, the database restarted and killed: every promise holds."""
    assert run(tmp_path, "migrate", DATABASE_URL=url).returncode == 0
    rng = random.Random(7)
    server = await asyncio.to_thread(serve, DATABASE_URL=url)
    client = connect(server)
    for product_id, count in STOCK.items():
        await client.stock(product_id, count)
    crowd = Crowd(client, rng)
    crowd.is_up.set()

    async def killed() -> None:
        crowd.is_up.clear()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        crowd.is_up.set()

    async def cut() -> None:
        await asyncio.to_thread(postgres.disconnect_clients, url)

    async def restarted() -> None:
        await asyncio.to_thread(postgres.stop)
        reply = await client.ask("GET", "/readyz")
        assert reply.status == 503, reply.text
        await asyncio.to_thread(postgres.start)

    async def crashed() -> None:
        await asyncio.to_thread(postgres.kill)
        await asyncio.to_thread(postgres.start)

    async with asyncio.TaskGroup() as group:
        for _ in range(BUYERS):
            group.create_task(crowd.buy())
        group.create_task(crowd.restock())
        for trouble in (cut, killed, restarted, cut, crashed, killed):
            await asyncio.sleep(rng.uniform(0.3, 0.9))
            await trouble()
        await asyncio.sleep(0.5)
        crowd.is_over = True

    orders = await check_world(client, crowd.accepted, crowd.pieces, unheard_max=crowd.unheard)
    print(f"{len(orders)} orders, {len(crowd.accepted)} accepted, {crowd.unheard} answers lost without a key")
    assert len(orders) >= 100
    assert server.stderr == ""


@pytest.mark.slow
async def test_two_replicas_sell_the_last_ten_pieces_to_ten(
    url: str, connect: Callable[[Server], Client], tmp_path: Path
) -> None:
    """Each with every module, on one database, one stream and one durable: exactly ten, and nothing done twice."""
    homes = [tmp_path / name for name in ("nats", "one", "other")]
    for home in homes:
        home.mkdir()
    with NatsServer(homes[0]) as nats:
        settings = {"DATABASE_URL": url, "BUS": "nats", "NATS_URL": nats.url}
        assert run(tmp_path, "migrate", **settings).returncode == 0
        servers = [Server(home, **settings) for home in homes[1:]]
        try:
            for server in servers:
                await asyncio.to_thread(server.start)
            one, other = (connect(server) for server in servers)
            await one.stock("FEW", 10)
            await other.stock("MANY", 1_000)
            baskets = [{"FEW": 1}, {"FEW": 1, "MANY": 1}, {"MANY": 1, "FEW": 1}] * 10
            ids = await asyncio.gather(*(client.place(basket) for basket in baskets for client in (one, other)))
            keyed = [client.place({"MANY": 1}, f"key-{number}") for number in range(20) for client in (one, other)]
            same = await asyncio.gather(*keyed)
            assert len(set(same)) == 20, "one key at two replicas is one order"
            orders = await check_world(one, ids + same, {"FEW": 10, "MANY": 1_000}, seconds=60.0)
        finally:
            for server in servers:
                server.end()
    assert Counter(order["status"] for order in orders) == {"confirmed": 30, "cancelled": 50}
    assert {order["reason"] for order in orders} == {None, "insufficient_stock"}
    assert "".join(server.stderr for server in servers) == ""
