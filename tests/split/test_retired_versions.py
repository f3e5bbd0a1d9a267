"""A retired version of an event is published for as long as a consumer of another system depends on it, and no longer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from tests.nats import NatsServer
from tests.process.client import Client, eventually
from tests.process.server import run
from tests.split.conftest import Build
from tests.split.invariants import check_system, consumers_of, wait_until_ready
from tests.split.system import System

V1, V2 = "orders.created.v1", "orders.created.v2"
KEPT = f"{V1} is retired and still published: warehouse consumes it and names no newer version"


@pytest.fixture
async def js(broker: NatsServer) -> AsyncIterator[JetStreamContext]:
    connection = await nats.connect(broker.url)
    yield connection.jetstream()
    await connection.close()


async def published(js: JetStreamContext) -> dict[str, int]:
    """Return how many messages of each version of orders.created the server holds."""
    subjects = (await js.stream_info("ORDERS", subjects_filter="orders.created.>")).state.subjects
    return dict(subjects or {})


@pytest.mark.slow
async def test_a_foreign_reader_keeps_a_retired_version_until_it_is_gone(
    build: Build, broker: NatsServer, connect: Callable[[System], Client], js: JetStreamContext
) -> None:
    """
    Meanwhile readiness is degraded and the log has one error. Later only v2 is stored; a v1 that arrives is still read.

    The durables of this system are the same with and without the setting.
    """
    system = build(RETIRED_VERSIONS=V1)
    (orders,), (inventory,) = system.servers["orders"], system.servers["inventory"]
    assert run(inventory.folder, "topology", "--apply", **inventory.settings).returncode == 0
    await js.add_consumer("ORDERS", ConsumerConfig(durable_name="warehouse", filter_subject=V1))
    system.start()
    client = connect(system)
    await client.stock("SKU-1", 100_000)

    async def readiness() -> Any:
        return (await client.request_url(f"{orders.url}/readyz")).body

    found = await eventually(readiness, lambda found: "retired_versions" in found["checks"])
    assert (found["status"], found["checks"]["retired_versions"]) == ("degraded", KEPT)
    accepted = [await client.place({"SKU-1": 1}) for _ in range(5)]
    assert (await client.wait_until_final(accepted[-1]))["status"] == "confirmed"
    await eventually(lambda: published(js), lambda found: found == {V1: 5, V2: 5})
    assert f"{V1}: retired, but still published beside the newest since 0.2.0; needed\n" in await status(orders.url, system)

    reader = await js.pull_subscribe_bind("warehouse", stream="ORDERS")
    assert {message.subject for message in await reader.fetch(5, timeout=5)} == {V1}
    await js.delete_consumer("ORDERS", "warehouse")
    await eventually(readiness, lambda found: found["status"] == "ready")
    accepted += [await client.place({"SKU-1": 1}) for _ in range(5)]
    await check_system(client, system, broker, accepted, {"SKU-1": 100_000})
    assert await published(js) == {V1: 5, V2: 10}
    assert f"{V1}: retired, no longer published; safe to drop\n" in await status(orders.url, system)
    lines = [line for line in orders.lines if '"ERROR"' in line]
    assert ["a retired version is still published" in line and KEPT in line for line in lines] == [True]

    filters = consumers_of(broker)["ORDERS/inventory"]["config"]["filter_subjects"]
    assert {V1, V2} <= set(filters)
    items = [{"product_id": "SKU-1", "quantity": 2}]
    body = {"order_id": "0199fe00-0000-7000-8000-000000000001", "customer_id": "c", "items": items, "version": "v1"}
    await js.publish(V1, json.dumps(body).encode(), headers={"ce-id": "from-another-system"})

    async def reserved() -> int:
        found: int = (await client.get("/v1/inventory/SKU-1"))["reserved"]
        return found

    await eventually(reserved, lambda count: count == 2)


async def status(url: str, system: System) -> str:
    """Return what ``contracts status`` prints about the process at *url*."""
    done = await asyncio.to_thread(run, system.servers["orders"][0].folder, "contracts", "status", "--url", url)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
async def test_a_rolling_change_of_the_setting_loses_and_doubles_nothing(
    build: Build, broker: NatsServer, connect: Callable[[System], Client], js: JetStreamContext
) -> None:
    """Producer and consumer are killed and started again with the setting, one at a time; then the producer without it."""
    system = build(NATS_ACK_WAIT_S="4").start()
    client = connect(system)
    await client.stock("SKU-1", 100_000)
    accepted: list[str] = []

    async def buy(count: int) -> None:
        accepted.extend([await client.place({"SKU-1": 1}) for _ in range(count)])

    await buy(10)
    for module, retired in ("orders", V1), ("inventory", V1), ("orders", ""):
        (server,) = system.servers[module]
        server.settings["RETIRED_VERSIONS"] = retired
        await asyncio.to_thread(server.kill)  # what it has in hand is delivered, or published, again
        await asyncio.to_thread(server.start)
        await buy(10)
    await wait_until_ready(system, client)
    orders = await check_system(client, system, broker, accepted, {"SKU-1": 100_000})
    assert {order["status"] for order in orders} == {"confirmed"}
    found = await published(js)
    assert found[V2] == 40
    assert 20 <= found[V1] < 40
