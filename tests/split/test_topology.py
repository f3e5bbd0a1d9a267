"""Damage to the topology on the broker: a deleted stream, deleted durables, a durable with changed settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import nats
import pytest
from nats.js import JetStreamContext
from prometheus_client.parser import text_string_to_metric_families

from tests.nats import NatsServer
from tests.process.client import Client, eventually
from tests.process.server import run
from tests.split.conftest import Build
from tests.split.invariants import check_system, consumers_of, wait_until_ready
from tests.split.system import System


async def buy_during(client: Client, damage: Callable[[], Any], buyers: int = 4) -> list[str]:
    """Place orders before, during and after *damage*; return the ids of the accepted ones."""
    accepted: list[str] = []
    is_stopped = False

    async def buy() -> None:
        while not is_stopped:
            accepted.append(await client.place({"SKU-1": 1}))
            await asyncio.sleep(0.02)  # the rate of a client

    async with asyncio.TaskGroup() as group:
        for _ in range(buyers):
            group.create_task(buy())
        await asyncio.sleep(1.0)
        await damage()
        await asyncio.sleep(1.0)
        is_stopped = True
    return accepted


@pytest.mark.night
async def test_a_deleted_stream_is_created_again_and_filled_by_republish(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """
    The orders stream is deleted under load, with messages that no consumer has received yet.

    The processes create it again, and ``republish`` publishes the lost events again. Events that were processed before
    have no second effect.
    """
    system = build(NATS_ACK_WAIT_S="4").start()
    client = connect(system)
    await client.stock("SKU-1", 100_000)
    (inventory,) = system.servers["inventory"]
    connection = await nats.connect(broker.url)
    undelivered: list[str] = []

    (orders,) = system.servers["orders"]

    async def total(name: str, **labels: str) -> float:
        text = (await client.request_url(f"{orders.url}/metrics")).text
        samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())

    async def damage() -> None:
        await asyncio.to_thread(system.kill, inventory)
        undelivered.extend([await client.place({"SKU-1": 1}) for _ in range(50)])
        placed = await total("orders_total", status="processing")

        async def published() -> float:
            return await total("messages_published_total", subject="orders.created.v1")

        # Only messages that the stream has stored can be lost with it; the relay sends the others.
        await eventually(published, lambda count: count >= placed)
        assert int(consumers_of(broker)["ORDERS/inventory"]["num_pending"]) >= 50
        await connection.jetstream().delete_stream("ORDERS")
        await asyncio.to_thread(system.restart, inventory)

    try:
        accepted = await buy_during(client, damage)
    finally:
        await connection.close()
    loss = "stream ORDERS was deleted and created again"
    await wait_until_ready(system, client, 30.0, loss=loss)
    statuses = {(await client.get(f"/v1/orders/{order_id}"))["status"] for order_id in undelivered}
    assert statuses == {"processing"}, "no message was lost, so the test proves nothing"

    for _ in range(2):  # the second run changes nothing
        done = run(orders.folder, "republish", "--since", "1h", **orders.settings)
        assert done.returncode == 0, done.stderr
    found = await check_system(client, system, broker, [*accepted, *undelivered], {"SKU-1": 100_000}, loss=loss)
    assert {order["status"] for order in found} == {"confirmed"}
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 100_000 - len(found)
    assert system.stderr == ""


@pytest.mark.slow
async def test_a_deleted_durable_is_created_again(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Durables are deleted under load: they are created again, and the inbox ignores the redelivered events."""
    system = build(NATS_ACK_WAIT_S="4").start()
    client = connect(system)
    await client.stock("SKU-1", 100_000)
    connection = await nats.connect(broker.url)

    async def damage() -> None:
        js = connection.jetstream()
        for stream, name in (("ORDERS", "inventory"), ("PAYMENTS", "orders"), ("PAYMENTS", "payments-gateway")):
            await js.delete_consumer(stream, name)

    try:
        accepted = await buy_during(client, damage)
    finally:
        await connection.close()
    orders = await check_system(client, system, broker, accepted, {"SKU-1": 100_000})
    assert {order["status"] for order in orders} == {"confirmed"}
    assert system.stderr == ""


@pytest.mark.night
async def test_a_durable_with_changed_settings_makes_its_process_unready(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """The process that needs the durable is not ready and names the field that differs; the others are ready."""
    system = build()
    (inventory,) = system.servers["inventory"]
    done = run(inventory.folder, "topology", "--apply", **inventory.settings)
    assert done.returncode == 0, done.stderr
    connection = await nats.connect(broker.url)
    try:
        js: JetStreamContext = connection.jetstream()
        config = (await js.consumer_info("ORDERS", "inventory")).config
        await js.add_consumer("ORDERS", config.evolve(max_deliver=3))
        system.start()
        client = connect(system)

        async def readyz() -> Any:
            reply = await client.request_url(f"{inventory.url}/readyz")
            return reply.status, reply.body["checks"].get("topology")

        status, problem = await eventually(readyz, lambda found: found[1] is not None)
        assert (status, problem) == (503, "consumer inventory on ORDERS: max_deliver is 3, not 5")
        for module in ("orders", "payments"):
            assert (await client.request_url(f"{system.servers[module][0].url}/readyz")).status == 200

        done = run(inventory.folder, "topology", "--check", **inventory.settings)
        assert (done.returncode, done.stdout.strip()) == (1, problem)
        done = run(inventory.folder, "topology", "--apply", **inventory.settings)
        assert done.returncode == 0, done.stderr
    finally:
        await connection.close()
    await asyncio.to_thread(inventory.kill)
    await asyncio.to_thread(inventory.start)
    await wait_until_ready(system, client)
