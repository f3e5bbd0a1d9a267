"""A clock that differs from what it was: committed events are published, timers neither fire early nor hang."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.postgres import PostgresServer
from tests.process.client import Client, eventually
from tests.process.conftest import Serve
from tests.process.server import SEPARATE_DATABASES, Server, run

HOURS = 3600
_PROGRAM = """
import datetime, runpy
import app.clock

class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.now(tz) + datetime.timedelta(seconds={seconds})

app.clock.datetime = Shifted
runpy.run_module("app", run_name="__main__", alter_sys=True)
"""


def set_clock(server: Server, seconds: float) -> None:
    """Let the next start of *server* read the machine's clock *seconds* ahead, or behind if negative."""
    server.program = ("-c", _PROGRAM.format(seconds=seconds))


async def readiness(client: Client) -> Any:
    return await client.get("/readyz")


def warnings(server: Server, word: str) -> list[Any]:
    """Return the log lines of the latest start, at WARNING or above, that contain *word*."""
    lines = [json.loads(line) for line in server.lines if line.startswith("{")]
    return [line for line in lines if line["level"] in ("WARNING", "ERROR") and word in line["message"]]


@pytest.mark.slow
@pytest.mark.parametrize("hours", [-2, pytest.param(2, marks=pytest.mark.night)])
async def test_orders_continue_after_a_restart_with_another_clock(
    serve: Serve, connect: Callable[[Server], Client], hours: float
) -> None:
    """
    The clock is set two hours back, or ahead, while the server is down: the events that were committed are published.

    The orders wait for their payment when the server is killed. They are neither stuck nor timed out at once: their
    timers keep what they had left. The log and readiness report the jump.
    """
    server = serve(**SEPARATE_DATABASES, SIMULATED_LATENCY_MS="3000", ORDER_TIMEOUT_S="3600")
    client = connect(server)
    await client.stock("SKU-1", 100)
    orders = [await client.place({"SKU-1": 1}) for _ in range(10)]
    for order in orders:
        await eventually(partial(client.get, f"/v1/orders/{order}"), lambda found: bool(found["status"] == "reserved"))
    server.kill()
    set_clock(server, hours * HOURS)
    server.start()
    for order in orders:
        assert (await client.wait_until_final(order))["status"] == "confirmed"
    found = await readiness(client)
    assert found["status"] == "degraded"
    word = "ahead" if hours > 0 else "behind"
    assert re.search(rf"[12]:\d\d:\d\d {word}, compared with the last heartbeat", found["checks"]["clock"])
    assert len(warnings(server, "heartbeat")) >= 1
    assert (await client.get("/v1/dead-letters"))["items"] == []


@pytest.mark.slow
@pytest.mark.parametrize("hours", [pytest.param(-2, marks=pytest.mark.night), 2])
async def test_a_time_out_fires_when_its_time_has_passed_on_the_new_clock(
    serve: Serve, connect: Callable[[Server], Client], hours: float
) -> None:
    """An order with three seconds left at the kill is timed out three seconds after the restart, whatever the clock says."""
    server = serve(SIMULATED_LATENCY_MS="600000", ORDER_TIMEOUT_S="4", CLOCK_JUMP_S="60")
    client = connect(server)
    await client.stock("SKU-1", 100)
    order = await client.place({"SKU-1": 1})
    server.kill()
    set_clock(server, hours * HOURS)
    server.start()
    began = time.monotonic()
    order_found = await client.wait_until_final(order)
    assert (order_found["status"], order_found["reason"]) in (("cancelled", "timed_out"), ("cancelled", "payment_unavailable"))
    assert 1.0 < time.monotonic() - began < 15.0


@pytest.mark.slow
async def test_a_replica_with_another_clock_uses_the_database_servers(
    serve: Serve, connect: Callable[[Server], Client], postgres: PostgresServer, tmp_path: Any
) -> None:
    """It reports that at ERROR and in readiness; its events are due, and its orders are dated by the server's clock."""
    url = postgres.create_database()
    assert run(tmp_path, "migrate", DATABASE_URL=url).returncode == 0
    server = Server(tmp_path, DATABASE_URL=url)
    set_clock(server, 2 * HOURS)
    try:
        server.start()
        client = connect(server)
        await client.stock("SKU-1", 100)
        order = await client.wait_until_final(await client.place({"SKU-1": 1}))
        assert order["status"] == "confirmed"
        [[skew]] = postgres.query(
            "SELECT extract(epoch FROM clock_timestamp() - max(created_at)) FROM orders_order",
            url.partition("?")[0].rpartition("/")[2],
        )
        assert abs(float(skew)) < 30  # type: ignore[arg-type]
        found = await readiness(client)
        assert found["status"] == "degraded"
        assert "the database server's clock is" in found["checks"]["clock"]
        assert [line["level"] for line in warnings(server, "database server's clock")] == ["ERROR"]
        await client.close()
    finally:
        await asyncio.to_thread(server.end)
