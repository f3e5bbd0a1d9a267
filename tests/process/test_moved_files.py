"""The database file of a running server is moved, replaced or deleted: what was accepted is kept, and no more is accepted."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.process.client import Client, Reply, eventually
from tests.process.conftest import Serve
from tests.process.server import Server


def back_up(server: Server) -> Path:
    """Write a backup beside the database, as the manual says."""
    backup = Path(server.database).with_name("backup.db")
    with closing(sqlite3.connect(server.database)) as connection:
        connection.execute(f"VACUUM INTO '{backup}'")
    return backup


def move(server: Server, name: str) -> None:
    """Move the database file and the files beside it to *name*, or back with its own name."""
    folder = Path(server.database).parent
    old = "away.db" if name == "fulfilment.db" else "fulfilment.db"
    for suffix in ("", "-wal", "-shm"):
        if (folder / f"{old}{suffix}").exists():
            (folder / f"{old}{suffix}").rename(folder / f"{name}{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize("is_replaced", [False, True])
async def test_nothing_is_accepted_into_a_file_that_was_moved_away(
    serve: Serve, connect: Callable[[Server], Client], is_replaced: bool
) -> None:
    """Orders are answered with 503, readiness shows the reason; the backup in its place is unchanged, and a restart uses what is there."""
    server = serve()
    client = connect(server)
    await client.stock("SKU-1", 100)
    early = [await client.place({"SKU-1": 1}) for _ in range(5)]
    for order in early:
        await client.wait_until_final(order)
    backup = back_up(server)
    orders = [await client.place({"SKU-1": 1}) for _ in range(5)]
    for order in orders:
        await client.wait_until_final(order)
    move(server, "away.db")
    content = read_and_put(backup, server) if is_replaced else b""
    for _ in range(5):
        reply = await client.post({"SKU-1": 1})
        assert (reply.status, reply.body["code"]) == (503, "database_unavailable")

    async def readiness() -> Reply:
        return await client.request("GET", "/readyz")

    found = await eventually(readiness, lambda reply: reply.status == 503)
    reason = "the database file was replaced" if is_replaced else "the database file was moved away or deleted"
    assert found.body["checks"]["database:orders"] == reason
    server.kill()
    if is_replaced:
        assert content_of(server) == content
        server.start()
        for order in early:
            await client.get(f"/v1/orders/{order}")
        move_aside(server)
    move(server, "fulfilment.db")
    server.start()
    for order in [*early, *orders]:
        assert (await client.get(f"/v1/orders/{order}"))["status"] == "confirmed"
    listed = await client.list_all("/v1/orders")
    assert len(listed) == 10


def read_and_put(backup: Path, server: Server) -> bytes:
    backup.rename(server.database)
    return content_of(server)


def content_of(server: Server) -> bytes:
    return Path(server.database).read_bytes()


def move_aside(server: Server) -> None:
    server.kill()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{server.database}{suffix}").unlink(missing_ok=True)
