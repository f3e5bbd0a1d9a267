"""The analytics of a running server, through kills of both: every figure is that of the states."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.process.client import Client
from tests.process.conftest import Serve
from tests.process.server import Server, environment_of, run


def started(server: Server, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `analytics run` on the database of *server*."""
    settings = {name: value for name, value in server.settings.items() if name.endswith("DATABASE_URL")}
    command = [sys.executable, "-m", "app", "analytics", "run", *arguments]
    return subprocess.Popen(command, cwd=server.folder, env=environment_of(settings), stderr=subprocess.PIPE)


def asked(server: Server, sql: str) -> list[Any]:
    done = run(server.folder, "analytics", "query", "--json", sql)
    assert done.returncode == 0, done.stderr
    rows: list[Any] = json.loads(done.stdout)
    return rows


@pytest.mark.slow
async def test_no_kill_loses_an_event_or_counts_it_twice(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """The server and the analytics are killed in turn; then each order counts once, as its state has it."""
    server = await asyncio.to_thread(serve)
    client = connect(server)
    await client.stock("A", 50)
    chance = random.Random(16)
    ids: list[str] = []
    for _ in range(2):
        process = started(server)
        ids += await asyncio.gather(*(client.place({"A": 1}) for _ in range(40)))
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, 1.0 + chance.random())
        process.kill()
        process.communicate()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
    orders = [await client.wait_until_final(id) for id in ids]
    process = started(server, "--once")
    _, errors = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, errors.decode()
    (counts,) = asked(
        server,
        "SELECT (SELECT count(*) FROM orders_created) AS placed, (SELECT count(DISTINCT order_id) FROM orders_created) AS orders,"
        " (SELECT count(*) FROM orders_confirmed) AS confirmed, (SELECT count(*) FROM orders_cancelled) AS cancelled,"
        " (SELECT count(*) FROM unreadable_events) AS unreadable",
    )
    statuses = [order["status"] for order in orders]
    assert counts == {
        "placed": len(ids), "orders": len(ids), "confirmed": statuses.count("confirmed"), "cancelled": statuses.count("cancelled"),
        "unreadable": 0,
    }  # fmt: skip
