"""Outages of NATS and of a database: orders are accepted, no delivery attempt is used up, and the system recovers."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.nats import NatsServer
from tests.process.client import Client, eventually
from tests.process.invariants import rows
from tests.split.conftest import Build
from tests.split.invariants import check_system, consumers_of, wait_until_ready
from tests.split.system import System


async def metric(client: Client, url: str, name: str) -> float:
    """Return the value of the metric *name* of the process at *url*."""
    text = (await client.request_url(f"{url}/metrics")).text
    (found,) = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]
    return found


async def wait_until_degraded(system: System, client: Client) -> None:
    """Wait until every process reports the outage of the bus in /readyz, /health and the metrics."""
    for server in system:

        async def readyz(url: str = server.url) -> Any:
            reply = await client.request_url(f"{url}/readyz")
            return reply.status, reply.body

        status, body = await eventually(readyz, lambda found: found[1]["checks"].get("bus") != "ok")
        assert (status, body["status"]) == (200, "degraded")
        health = await client.request_url(f"{server.url}/health")
        assert health.status == 503
        assert health.headers["Content-Type"].startswith("application/problem+json")
        assert await metric(client, server.url, "bus_connected") == 0


@pytest.mark.slow
async def test_orders_are_accepted_during_a_nats_outage(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """POST is answered with 202 at once; every process is degraded; after the outage every order is confirmed."""
    system = build().start()
    client = connect(system)
    await client.stock("SKU-1", 10_000)
    accepted = [await client.place({"SKU-1": 1}) for _ in range(10)]
    await asyncio.gather(*(client.wait_until_final(order_id) for order_id in accepted))
    broker.stop()
    await wait_until_degraded(system, client)

    until = time.monotonic() + 20.0
    seconds: list[float] = []
    while time.monotonic() < until:
        began = time.monotonic()
        accepted.append(await client.place({"SKU-1": 1}))
        seconds.append(time.monotonic() - began)
        await asyncio.sleep(0.02)  # the rate of a client
    seconds.sort()
    print(f"{len(accepted)} accepted, the slowest response took {seconds[-1]:.3f} s")
    assert seconds[int(len(seconds) * 0.99)] < 1.0
    assert (await client.get(f"/v1/orders/{accepted[-1]}"))["status"] == "processing"

    broker.start()
    orders = await check_system(client, system, broker, accepted, {"SKU-1": 10_000})
    assert {order["status"] for order in orders} == {"confirmed"}
    for server in system:
        assert await metric(client, server.url, "bus_connected") == 1
        assert await metric(client, server.url, "bus_reconnects_total") >= 1


@pytest.mark.slow
async def test_the_system_starts_without_nats(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """With NATS out of reach at start the processes are degraded, not unready: orders are accepted and continue later."""
    broker.stop()
    system = build().start()
    client = connect(system)
    await wait_until_degraded(system, client)
    await client.stock("SKU-1", 100)
    accepted = [await client.place({"SKU-1": 1}) for _ in range(20)]
    broker.start()
    orders = await check_system(client, system, broker, accepted, {"SKU-1": 100})
    assert {order["status"] for order in orders} == {"confirmed"}
    assert system.stderr == ""


@pytest.mark.slow
async def test_orders_are_rejected_while_the_outbox_is_over_its_cap(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Above OUTBOX_CAP an order is answered with 503 before anything is stored; after the outage it is accepted."""
    system = build(OUTBOX_CAP="50").start()
    client = connect(system)
    await client.stock("SKU-1", 1_000)
    broker.stop()
    await wait_until_degraded(system, client)
    accepted = []
    for _ in range(200):
        reply = await client.post({"SKU-1": 1})
        if reply.status == 503:
            break
        assert reply.status == 202, reply.text
        accepted.append(reply.body["order_id"])
    ((waiting,),) = rows(
        system.database_of("orders"), "SELECT count(*) FROM orders_outbox WHERE sent_at IS NULL AND name IS NULL"
    )
    ((events,),) = rows(
        system.database_of("orders"), "SELECT count(DISTINCT event_id) FROM orders_outbox WHERE sent_at IS NULL AND name IS NULL"
    )
    assert waiting == 2 * events, "orders.created is published in two versions"
    assert 50 < events <= 80, "the cap counts events, whatever the number of their versions"
    assert int(reply.headers["Retry-After"]) >= 1
    assert reply.headers["Content-Type"].startswith("application/problem+json")
    ((stored,),) = rows(system.database_of("orders"), "SELECT count(*) FROM orders_order")
    assert stored == len(accepted)

    broker.start()
    accepted_again = await eventually(lambda: client.post({"SKU-1": 1}), lambda reply: reply.status == 202, 30.0)
    accepted.append(accepted_again.body["order_id"])
    await check_system(client, system, broker, accepted, {"SKU-1": 1_000})


@pytest.mark.night
async def test_orders_are_accepted_at_full_speed_while_nats_is_away(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """None is rejected, memory stays flat because the backlog is in the table, and all of them end afterwards."""
    system = build(LOG_LEVEL="WARNING").start()
    client = connect(system)
    await client.stock("SKU-1", 1_000_000)
    accepted = [await client.place({"SKU-1": 1}) for _ in range(200)]
    broker.kill()
    await wait_until_degraded(system, client)
    (orders,) = system.servers["orders"]
    before = resident_bytes(orders.pid)
    for _ in range(30):
        replies = await asyncio.gather(*(client.post({"SKU-1": 1}) for _ in range(50)))
        assert {reply.status for reply in replies} == {202}
        accepted += [reply.body["order_id"] for reply in replies]
    assert resident_bytes(orders.pid) - before < 30 * 2**20
    metrics = (await client.request_url(f"{orders.url}/metrics")).text
    (used,) = [float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("outbox_cap_used_ratio ")]
    assert 1_500 / 400_000 <= used < 1_600 / 400_000
    broker.start()
    confirmed = "/v1/orders?status=confirmed&limit=1"
    await eventually(lambda: client.get(confirmed), lambda found: bool(found["items"]), 30.0)
    for order in accepted[-5:]:
        assert (await client.wait_until_final(order))["status"] == "confirmed"


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.night
async def test_a_locked_database_uses_up_no_delivery_attempt(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """
    While inventory cannot write, it holds its messages for longer than ``ack_wait``, still as the first attempt.

    There are no dead letters, no restart is needed, and the other processes continue.
    """
    system = build(NATS_ACK_WAIT_S="6").start()
    client = connect(system)
    await client.stock("SKU-1", 1_000)
    accepted = [await client.place({"SKU-1": 1}) for _ in range(5)]
    await asyncio.gather(*(client.wait_until_final(order_id) for order_id in accepted))
    with closing(sqlite3.connect(system.database_of("inventory"), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for _ in range(250):
            accepted.append(await client.place({"SKU-1": 1}))
            await asyncio.sleep(0.05)  # twelve seconds and more; ack_wait is six
        readyz = await client.request_url(f"{system.servers['inventory'][0].url}/readyz")
        assert readyz.status == 503
        assert (await client.request("GET", f"/v1/orders/{accepted[-1]}")).body["status"] == "processing"
        assert consumers_of(broker)["ORDERS/inventory"]["num_redelivered"] == 0, "a delivery attempt was used up"
        other.execute("ROLLBACK")
    orders = await check_system(client, system, broker, accepted, {"SKU-1": 1_000})
    assert {order["status"] for order in orders} == {"confirmed"}
    await wait_until_ready(system, client)
