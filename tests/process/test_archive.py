"""ORDERS_KEPT: finished orders leave the tables for the archive, and everything about them still works from there."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.gateways.fault import FaultyStripe
from tests.process.client import Client, eventually
from tests.process.server import SEPARATE_DATABASES, Server
from tests.process.test_provider_faults import SECRET, environment
from tests.process.test_stripe import reconcile

DAY = 86_400
TABLES = {"orders": "orders_order", "inventory": "inventory_reservation", "payments": "payments_payment"}
ORDERS = 120
"""More than the archiver moves in one transaction."""

_PROGRAM = """
import datetime, runpy, time
import uuid_utils
import app.clock

class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.now(tz) - datetime.timedelta(days={days})

made = uuid_utils.uuid7
uuid_utils.uuid7 = lambda: made(nanoseconds=time.time_ns() - {days} * 86_400 * 10**9)
app.clock.datetime = Shifted
runpy.run_module("app", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
async def stripe() -> AsyncIterator[FaultyStripe]:
    server = await FaultyStripe(webhook_secret=SECRET).start()
    yield server
    await server.stop()


def start_days_ago(server: Server, days: int) -> None:
    """Start *server* with a clock that is *days* behind."""
    server.program = ("-c", _PROGRAM.format(days=days))
    server.start()


def forget_heartbeats(server: Server) -> None:
    """Let the next start see no jump of the clock, as if the server had run all the time."""
    for module in TABLES:
        with closing(sqlite3.connect(server.database_of(module))) as connection, connection:
            connection.execute(f"DELETE FROM {module}_heartbeat")


def rows(server: Server, module: str, table: str) -> int:
    """Return how many rows a table has now."""
    with closing(sqlite3.connect(f"file:{server.database_of(module)}?mode=ro", uri=True)) as connection:
        count: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return count


async def shown(client: Client, id: str) -> tuple[Any, Any]:
    """Return the order and its payment."""
    return await client.get(f"/v1/orders/{id}"), await client.get(f"/v1/payments/{id}")


async def kill_while_archiving(server: Server) -> None:
    """Start *server*, and kill it each time that some of the orders have gone, until only one is left."""
    kills = 0
    while (left := rows(server, "orders", "orders_order")) > 1:
        await asyncio.to_thread(server.start)

        async def count(left: int = left) -> bool:
            return rows(server, "orders", "orders_order") < left

        await eventually(count, bool)
        await asyncio.to_thread(server.kill)
        kills += 1
    assert kills >= 1
    await asyncio.to_thread(server.start)


@pytest.mark.slow
@pytest.mark.parametrize("files", [{}, pytest.param(SEPARATE_DATABASES, marks=pytest.mark.night)], ids=["local delivery", "over the bus"])
async def test_old_orders_are_archived_and_still_served(
    files: dict[str, str], tmp_path: Path, connect: Callable[[Server], Client], stripe: FaultyStripe
) -> None:
    """
    Killed between the moves, the server loses nothing: each order and payment is shown as before, by its id only.

    A late cancellation, a refund and a dispute at the provider meet the whole state, so that the money is right. The order
    whose refund is pending stays in the lists. An idempotency key of that time is forgotten: it makes a new order.
    """
    server = Server(tmp_path, **environment(stripe), **files)
    client = connect(server)
    stripe.wall_seconds = lambda: time.time() - 100 * DAY
    start_days_ago(server, 100)
    try:
        await client.stock("SKU-1", 10_000, 500)
        ids = await asyncio.gather(*(client.place({"SKU-1": 1}, key=f"key-{n}") for n in range(ORDERS)))
        await asyncio.gather(*(client.wait_until_final(id) for id in ids))
        await client.cancel(ids[0])
        await client.wait_for_payment(ids[0], "refunded")
        stripe.refund_status = lambda: "pending"
        await client.cancel(ids[1])
        await eventually(partial(shown, client, ids[1]), lambda found: bool(found[1]["refund_status"] == "pending"))
        done = ids[0], *ids[2:]
        before = await asyncio.gather(*(shown(client, id) for id in done))
        shelf = await client.get("/v1/inventory/SKU-1")
        server.kill()
        forget_heartbeats(server)
        stripe.wall_seconds = time.time
        server.program = ("-m", "app")
        server.settings["ORDERS_KEPT"] = "90d"
        await kill_while_archiving(server)

        async def left() -> list[int]:
            return [rows(server, module, table) for module, table in TABLES.items()]

        await eventually(left, lambda found: found == [1, 0, 1])  # the refund was looked up again, which changed both
        assert await asyncio.gather(*(shown(client, id) for id in done)) == before
        for path in "/v1/orders", "/v1/payments":
            assert [item["order_id"] for item in await client.list_all(path)] == [ids[1]]
        assert await client.get("/v1/inventory/SKU-1") == shelf
        code, report = await asyncio.to_thread(reconcile_all, server)
        assert (code, report["payments"], report["differences"]) == (0, ORDERS, [])

        stripe.refund_status = lambda: "succeeded"
        stripe.webhook_url = f"{server.url}/v1/payments/webhooks/stripe"
        await client.cancel(ids[2])
        assert (await client.wait_for_payment(ids[2], "refunded"))["refunded"]["amount"] == 500
        stripe.refund_in_dashboard((await shown(client, ids[3]))[1]["reference"], 200)
        stripe.open_dispute((await shown(client, ids[4]))[1]["reference"])
        await eventually(partial(shown, client, ids[3]), lambda found: bool(found[1]["refunded"]["amount"] == 200))
        await eventually(partial(shown, client, ids[4]), lambda found: bool(found[1]["dispute"] == "open"))
        await eventually(partial(shown, client, ids[3]), lambda found: bool(found[0].get("refunded", {}).get("amount") == 200))
        assert stripe.refunded()[ids[2]] == [500]
        assert stripe.refunded()[ids[3]] == [200]
        assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == shelf["on_hand"] + 1
        assert await client.list_all("/v1/dead-letters") == []
        again = partial(client.post, {"SKU-1": 1}, "key-9")
        reply = await eventually(again, lambda reply: "Idempotency-Replayed" not in reply.headers)
        assert (reply.status, reply.body["order_id"] in ids) == (202, False)
    finally:
        await asyncio.to_thread(server.end)


def reconcile_all(server: Server) -> tuple[int, Any]:
    """Compare all payments of half a year with the provider's."""
    return reconcile(server, "--since", "180d")
