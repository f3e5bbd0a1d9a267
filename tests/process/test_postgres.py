"""The server on PostgreSQL: explicit migration, lost connections, restarts of the database, several replicas."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.process.client import Client, eventually
from tests.process.conftest import Serve
from tests.process.invariants import MODULES, check_invariants
from tests.process.server import Server, run
from tests.process.test_start import SECRET, fails_with
from tests.process.workload import BUYERS, STOCK, Workload


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    """The address of an empty database; its server runs again after the test."""
    yield postgres.create_database()
    postgres.start()


@pytest.mark.slow
def test_serve_refuses_an_unmigrated_database(url: str, tmp_path: Path) -> None:
    """A shared database is migrated by an explicit command only; the error of `serve` names it."""
    line = fails_with(tmp_path, 3, "python -m app migrate", DATABASE_URL=url)
    assert "orders" in line
    first, second = run(tmp_path, "migrate", DATABASE_URL=url), run(tmp_path, "migrate", DATABASE_URL=url)
    assert (first.returncode, second.returncode, first.stderr, second.stderr) == (0, 0, "", "")
    assert all(module in first.stdout for module in MODULES)
    assert "nothing to do" in second.stdout


@pytest.mark.slow
def test_a_database_out_of_reach_is_named_by_its_variable(url: str, tmp_path: Path) -> None:
    """The error shows neither host nor password nor user."""
    unreachable = f"postgresql://shop:{SECRET}@127.0.0.1:1/x"
    for name in ("DATABASE_URL", "PAYMENTS_DATABASE_URL"):
        line = fails_with(tmp_path, 3, name, command="migrate", **{"DATABASE_URL": url, name: unreachable})
        assert line.startswith(f"fulfilment: {name}: ")
        assert "127.0.0.1" not in line
        assert "shop" not in line


@pytest.mark.slow
async def test_one_process_delivers_locally(
    postgres: PostgresServer, url: str, serve: Serve, connect: Callable[[Server], Client], tmp_path: Path
) -> None:
    """As on a SQLite file: of all events of an order only the charge request, for the worker, gets an outbox row."""
    assert run(tmp_path, "migrate", DATABASE_URL=url).returncode == 0
    server = await asyncio.to_thread(serve, DATABASE_URL=url)
    client = connect(server)
    await client.stock("BOOK", 5)
    orders = await check_invariants(client, [await client.place({"BOOK": 1})], {"BOOK": 5})
    assert [order["status"] for order in orders] == ["confirmed"]
    database = url.partition("@/")[2].partition("?")[0]
    outboxes = [f"SELECT subject FROM {module}_outbox" for module in MODULES]
    rows = await asyncio.to_thread(postgres.query, " UNION ALL ".join(outboxes), database)
    assert rows == [("payments.charge_requested.v1",)]


@pytest.mark.slow
async def test_nothing_is_lost_when_server_connections_and_database_are_killed(
    postgres: PostgresServer, url: str, serve: Serve, connect: Callable[[Server], Client], tmp_path: Path
) -> None:
    """The server is killed twice, its connections are cut, the database is restarted and killed: the invariants hold."""
    assert run(tmp_path, "migrate", DATABASE_URL=url).returncode == 0
    rng = random.Random(7)
    server = await asyncio.to_thread(serve, DATABASE_URL=url)
    client = connect(server)
    for product_id, count in STOCK.items():
        await client.stock(product_id, count)
    workload = Workload(client, rng)
    workload.server_is_up.set()

    async def kill_server() -> None:
        workload.server_is_up.clear()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        workload.server_is_up.set()

    async def cut_connections() -> None:
        await asyncio.to_thread(postgres.disconnect_clients, url)

    async def restart_database() -> None:
        await asyncio.to_thread(postgres.stop)
        reply = await client.request("GET", "/readyz")
        assert reply.status == 503, reply.text
        await asyncio.to_thread(postgres.start)

    async def kill_database() -> None:
        await asyncio.to_thread(postgres.kill)
        await asyncio.to_thread(postgres.start)

    async def orders_accepted() -> int:
        return len(workload.accepted)

    async with asyncio.TaskGroup() as group:
        for _ in range(BUYERS):
            group.create_task(workload.buy())
        group.create_task(workload.restock())
        for disturb in (
            cut_connections,
            kill_server,
            restart_database,
            cut_connections,
            kill_database,
            kill_server,
        ):
            before = len(workload.accepted)
            await asyncio.sleep(rng.uniform(0.3, 0.9))
            await eventually(orders_accepted, lambda count, before=before: count >= before + 20)  # type: ignore[misc]
            await disturb()
        await asyncio.sleep(0.5)
        workload.is_stopped = True

    orders = await check_invariants(
        client, workload.accepted, workload.stock, lost_responses_max=workload.lost_responses
    )
    print(
        f"{len(orders)} orders, {len(workload.accepted)} accepted, {workload.lost_responses} responses lost without a key"
    )
    assert len(orders) >= 100
    assert server.stderr == ""


@pytest.mark.slow
async def test_two_replicas_sell_the_last_ten_pieces_to_ten_orders(
    url: str, connect: Callable[[Server], Client], tmp_path: Path
) -> None:
    """Both run every module on one database, one stream and one durable: exactly ten orders, and nothing happens twice."""
    folders = [tmp_path / name for name in ("nats", "one", "other")]
    for folder in folders:
        folder.mkdir()
    with NatsServer(folders[0]) as nats:
        settings = {"DATABASE_URL": url, "BUS": "nats", "NATS_URL": nats.url}
        assert run(tmp_path, "migrate", **settings).returncode == 0
        servers = [Server(folder, **settings) for folder in folders[1:]]
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
            assert len(set(same)) == 20, "one key at two replicas must be one order"
            orders = await check_invariants(one, ids + same, {"FEW": 10, "MANY": 1_000}, seconds=60.0)
        finally:
            for server in servers:
                server.end()
    assert Counter(order["status"] for order in orders) == {"confirmed": 30, "cancelled": 50}
    assert {order["reason"] for order in orders} == {None, "insufficient_stock"}
    assert "".join(server.stderr for server in servers) == ""
