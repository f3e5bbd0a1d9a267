"""The PostgreSQL server is lost under load, and its standby takes its place."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.postgres import PostgresServer
from tests.process.client import Client, eventually
from tests.process.conftest import Serve
from tests.process.invariants import check_invariants
from tests.process.server import Server, run
from tests.process.workload import BUYERS, STOCK, Workload


@pytest.mark.slow
async def test_nothing_is_lost_when_a_synchronous_standby_is_promoted(
    replicated: tuple[PostgresServer, PostgresServer], serve: Serve, connect: Callable[[Server], Client], tmp_path: Path
) -> None:
    """The server finds the new primary by the second host of its address, without a restart."""
    primary, standby = replicated
    primary.query("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
    primary.query("SELECT pg_reload_conf()")
    primary.wait_for("SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'")
    primary.query("CREATE DATABASE shop TEMPLATE template0 STRATEGY wal_log")
    url = primary.url("shop", standby)
    assert run(tmp_path, "migrate", DATABASE_URL=url).returncode == 0
    server = await asyncio.to_thread(serve, DATABASE_URL=url)
    client = connect(server)
    for product_id, count in STOCK.items():
        await client.stock(product_id, count)
    workload = Workload(client, random.Random(7))
    workload.server_is_up.set()

    async def orders_accepted() -> int:
        return len(workload.accepted)

    async with asyncio.TaskGroup() as group:
        for _ in range(BUYERS):
            group.create_task(workload.buy())
        group.create_task(workload.restock())
        await eventually(orders_accepted, lambda count: count >= 30)
        await asyncio.to_thread(primary.kill)
        before = len(workload.accepted)
        await asyncio.to_thread(standby.query, "SELECT pg_promote()")
        await eventually(orders_accepted, lambda count: count >= before + 30)
        workload.is_stopped = True
    assert await asyncio.to_thread(standby.query, "SELECT pg_is_in_recovery()") == [(False,)]
    lost = workload.lost_responses
    await check_invariants(client, workload.accepted, workload.stock, lost_responses_max=lost)
