"""The analytics of three processes on NATS, through kills and events that are published again."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
import pytest

from tests.process.client import Client
from tests.process.server import environment_of, run
from tests.split.conftest import Build
from tests.split.system import System

COUNTS = """
SELECT (SELECT count(*) FROM orders_created) AS placed, (SELECT count(DISTINCT order_id) FROM orders_created) AS orders,
       (SELECT count(*) FROM orders_confirmed) AS confirmed, (SELECT count(*) FROM orders_cancelled) AS cancelled,
       (SELECT count(*) FROM inventory_reserved) AS reserved, (SELECT count(*) FROM payments_captured) AS captured,
       (SELECT count(*) FROM unreadable_events) AS unreadable
"""


async def publish_again(url: str) -> None:
    """Publish each message of the orders stream once more, under a new message id."""
    connection = await nats.connect(url)
    try:
        js = connection.jetstream()
        state = (await js.stream_info("ORDERS")).state
        for number in range(state.first_seq, state.last_seq + 1):
            raw = await js.get_msg("ORDERS", seq=number, direct=False)
            await js.publish(str(raw.subject), raw.data or b"", headers={**(raw.headers or {}), "Nats-Msg-Id": str(uuid4())})
    finally:
        await connection.close()


@pytest.mark.night
async def test_figures_from_the_streams_are_those_of_the_states(
    build: Build, connect: Callable[[System], Client], tmp_path: Path
) -> None:
    """
    Each order counts once, though processes and analytics are killed and events are published again.

    ``republish`` gives each event the message id that it had, so the stream stores it again only after its de-duplication
    window; the test does what it does then.
    """
    system = build().start()
    client = connect(system)
    await client.stock("A", 25)
    settings = {"BUS": "nats", "NATS_URL": system.servers["orders"][0].settings["NATS_URL"]}
    folder = tmp_path / "analytics"
    folder.mkdir()

    def follow(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "app", "analytics", "run", "--source", "bus", *arguments]
        return subprocess.Popen(command, cwd=folder, env=environment_of(settings), stderr=subprocess.PIPE)

    ids: list[str] = []
    for module in ("inventory", "payments"):
        process = follow()
        ids += await asyncio.gather(*(client.place({"A": 1}) for _ in range(20)))
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, 1.5)
        process.kill()
        process.communicate()
        (server,) = system.servers[module]
        await asyncio.to_thread(system.kill, server)
        await asyncio.to_thread(system.restart, server)
    orders = [await client.wait_until_final(id) for id in ids]
    for (server,) in system.servers.values():
        done = await asyncio.to_thread(run, server.folder, "republish", "--since", "1h", **server.settings)
        assert done.returncode == 0, done.stderr
    await publish_again(settings["NATS_URL"])
    for _ in range(2):  # the second run begins where the first one has ended
        process = follow("--once")
        _, errors = await asyncio.to_thread(process.communicate)
        assert process.returncode == 0, errors.decode()
    done = await asyncio.to_thread(run, folder, "analytics", "query", "--json", COUNTS)
    (counts,) = json.loads(done.stdout)
    statuses: list[Any] = [order["status"] for order in orders]
    assert counts == {
        "placed": len(ids), "orders": len(ids), "confirmed": statuses.count("confirmed"), "cancelled": statuses.count("cancelled"),
        "reserved": 25, "captured": 25, "unreadable": 0,
    }  # fmt: skip
    assert statuses.count("confirmed") == 25
