"""The stream of all orders where two processes run the module, on PostgreSQL and NATS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.process.client import Client
from tests.process.order_stream import OrderStream
from tests.process.server import Server, run


@pytest.fixture
def replicas(tmp_path: Path, broker: NatsServer, postgres: PostgresServer) -> Iterator[tuple[Server, Server]]:
    """Two processes, each with every module."""
    settings = {"BUS": "nats", "NATS_URL": broker.url, "DATABASE_URL": postgres.create_database(), "NATS_ACK_WAIT_S": "3"}
    one, other = (Server(tmp_path / name, **settings) for name in ("one", "other"))
    for server in one, other:
        server.folder.mkdir()
    assert run(one.folder, "migrate", **one.settings).returncode == 0
    for server in one, other:
        server.launch()
    for server in one, other:
        server.wait_until_ready()
    yield one, other
    for server in one, other:
        server.end()


@pytest.mark.slow
async def test_a_client_continues_at_another_replica(
    replicas: tuple[Server, Server], connect: Callable[[Server], Client]
) -> None:
    """A replica sends what the other one has changed; after its death the other one sends what the client has missed."""
    one, other = replicas
    client = connect(other)
    await client.stock("SKU-1", 1000)
    target = one
    async with OrderStream(lambda: target.url_of("/v1/orders/stream")).following() as stream:
        placed = [await client.place({"SKU-1": 1}) for _ in range(10)]
        await stream.until_final(placed)
        placed += [await client.place({"SKU-1": 1}) for _ in range(10)]
        target = other
        await asyncio.to_thread(one.kill)
        await stream.until_final(placed)
        assert stream.connections == 2
    for id in placed:
        assert stream.seen[id] == await client.get(f"/v1/orders/{id}")
