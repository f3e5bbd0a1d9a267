"""What the house stands on is away for a while: orders come in all the same, no try is spent, and all goes on by itself."""

from __future__ import annotations

import asyncio
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
from tests.split.system import System
from tests.split.world import consumers_of, everybody_is_ready, look_at_the_whole


async def metric(client: Client, url: str, name: str) -> float:
    """Return the one number that the part at *url* shows under *name*."""
    text = (await client.call(f"{url}/metrics")).text
    (found,) = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]
    return found


async def see_it_degraded(system: System, client: Client) -> None:
    """Wait until every part says that the bus is away, in each of the ways in which it says so."""
    for server in system:

        async def readyz(url: str = server.url) -> Any:
            reply = await client.call(f"{url}/readyz")
            return reply.status, reply.body

        status, body = await eventually(readyz, lambda found: found[1]["checks"].get("bus") != "ok")
        assert (status, body["status"]) == (200, "degraded")
        health = await client.call(f"{server.url}/health")
        assert health.status == 503
        assert health.headers["Content-Type"].startswith("application/problem+json")
        assert await metric(client, server.url, "bus_connected") == 0


@pytest.mark.slow
async def test_orders_come_in_while_nats_is_away(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """POST answers 202 all along and at once; each part says that it is degraded; afterwards all is caught up."""
    system = build().start()
    client = connect(system)
    await client.stock("SKU-1", 10_000)
    accepted = [await client.place({"SKU-1": 1}) for _ in range(10)]
    await asyncio.gather(*(client.followed(order_id) for order_id in accepted))
    broker.stop()
    await see_it_degraded(system, client)

    until = time.monotonic() + 20.0
    seconds: list[float] = []
    while time.monotonic() < until:
        began = time.monotonic()
        accepted.append(await client.place({"SKU-1": 1}))
        seconds.append(time.monotonic() - began)
        await asyncio.sleep(0.02)  # the pace of customers
    seconds.sort()
    print(f"{len(accepted)} accepted, the slowest answer took {seconds[-1]:.3f} s")
    assert seconds[int(len(seconds) * 0.99)] < 1.0
    assert (await client.get(f"/v1/orders/{accepted[-1]}"))["status"] == "processing"

    broker.start()
    orders = await look_at_the_whole(client, system, broker, accepted, {"SKU-1": 10_000})
    assert {order["status"] for order in orders} == {"confirmed"}
    for server in system:
        assert await metric(client, server.url, "bus_connected") == 1
        assert await metric(client, server.url, "bus_reconnects_total") >= 1


async def test_the_house_starts_without_nats(build: Build, broker: NatsServer, connect: Callable[[System], Client]) -> None:
    """A broker that is away at start costs readiness nothing: orders come in, and go on when it is there."""
    broker.stop()
    system = build().start()
    client = connect(system)
    await see_it_degraded(system, client)
    await client.stock("SKU-1", 100)
    accepted = [await client.place({"SKU-1": 1}) for _ in range(20)]
    broker.start()
    orders = await look_at_the_whole(client, system, broker, accepted, {"SKU-1": 100})
    assert {order["status"] for order in orders} == {"confirmed"}
    assert system.stderr == ""


async def test_over_its_cap_the_backlog_sheds(build: Build, broker: NatsServer, connect: Callable[[System], Client]) -> None:
    """With too much waiting for NATS an order is sent away with 503 before anything is stored; later there is room."""
    system = build(OUTBOX_CAP="50").start()
    client = connect(system)
    await client.stock("SKU-1", 1_000)
    broker.stop()
    await see_it_degraded(system, client)
    accepted = []
    for _ in range(200):
        reply = await client.post({"SKU-1": 1})
        if reply.status == 503:
            break
        assert reply.status == 202, reply.text
        accepted.append(reply.body["order_id"])
    ((waiting,),) = rows(system.database_of("orders"), "SELECT count(*) FROM orders_outbox WHERE sent_at IS NULL AND name IS NULL")
    assert 50 < waiting <= 120, "the cap counts events, and an order may be several"
    assert int(reply.headers["Retry-After"]) >= 1
    assert reply.headers["Content-Type"].startswith("application/problem+json")
    ((stored,),) = rows(system.database_of("orders"), "SELECT count(*) FROM orders_order")
    assert stored == len(accepted)

    broker.start()
    again = await eventually(lambda: client.post({"SKU-1": 1}), lambda reply: reply.status == 202, 30.0)
    accepted.append(again.body["order_id"])
    await look_at_the_whole(client, system, broker, accepted, {"SKU-1": 1_000})


@pytest.mark.slow
async def test_a_locked_database_spends_no_try(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """
    While inventory cannot write, what comes to it waits in its hands: longer than ``ack_wait``, and as the first try.

    Nothing is laid down, nobody has to restart it, and other parts do not notice.
    """
    system = build(NATS_ACK_WAIT_S="4").start()
    client = connect(system)
    await client.stock("SKU-1", 1_000)
    accepted = [await client.place({"SKU-1": 1}) for _ in range(5)]
    await asyncio.gather(*(client.followed(order_id) for order_id in accepted))
    with closing(sqlite3.connect(system.database_of("inventory"), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for _ in range(200):
            accepted.append(await client.place({"SKU-1": 1}))
            await asyncio.sleep(0.05)  # ten seconds and more: an answer is overdue after four
        readyz = await client.call(f"{system.parts['inventory'][0].url}/readyz")
        assert readyz.status == 503
        assert (await client.ask("GET", f"/v1/orders/{accepted[-1]}")).body["status"] == "processing"
        assert consumers_of(broker)["ORDERS/inventory"]["num_redelivered"] == 0, "a try was spent"
        other.execute("ROLLBACK")
    orders = await look_at_the_whole(client, system, broker, accepted, {"SKU-1": 1_000})
    assert {order["status"] for order in orders} == {"confirmed"}
    await everybody_is_ready(system, client)
