"""The ground on the broker gives way: a stream is wiped, a durable deleted, another one edited by hand."""

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
from tests.split.system import System
from tests.split.world import consumers_of, everybody_is_ready, look_at_the_whole


async def buy_during(client: Client, accident: Callable[[], Any], buyers: int = 4) -> list[str]:
    """Let *buyers* buy before, during and after the *accident*; return what was accepted."""
    accepted: list[str] = []
    is_over = False

    async def buy() -> None:
        while not is_over:
            accepted.append(await client.place({"SKU-1": 1}))
            await asyncio.sleep(0.02)  # the pace of customers

    async with asyncio.TaskGroup() as group:
        for _ in range(buyers):
            group.create_task(buy())
        await asyncio.sleep(1.0)
        await accident()
        await asyncio.sleep(1.0)
        is_over = True
    return accepted


@pytest.mark.slow
async def test_a_wiped_stream_is_founded_anew_and_filled_from_the_outbox(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """
    The stream of orders is deleted under load, with messages in it that nobody has heard yet.

    The house founds it again by itself; what it took with it is published again by ``republish``. Nothing that was
    heard before has a second effect.
    """
    system = build(NATS_ACK_WAIT_S="4").start()
    client = connect(system)
    await client.stock("SKU-1", 100_000)
    (inventory,) = system.parts["inventory"]
    wire = await nats.connect(broker.url)
    unheard: list[str] = []

    (orders,) = system.parts["orders"]

    async def counted(name: str, **labels: str) -> float:
        text = (await client.call(f"{orders.url}/metrics")).text
        samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())

    async def accident() -> None:
        await asyncio.to_thread(system.kill, inventory)
        unheard.extend([await client.place({"SKU-1": 1}) for _ in range(50)])
        placed = await counted("orders_total", status="processing")

        async def taken() -> float:
            return await counted("messages_published_total", subject="orders.created.v1")

        # Only what the stream has taken can be lost with it; the rest would be sent again by itself.
        await eventually(taken, lambda count: count >= placed)
        assert int(consumers_of(broker)["ORDERS/inventory"]["num_pending"]) >= 50
        await wire.jetstream().delete_stream("ORDERS")
        await asyncio.to_thread(system.revive, inventory)

    try:
        accepted = await buy_during(client, accident)
    finally:
        await wire.close()
    await everybody_is_ready(system, client, 30.0)
    statuses = {(await client.get(f"/v1/orders/{order_id}"))["status"] for order_id in unheard}
    assert statuses == {"processing"}, "nothing was lost, so there is nothing to restore"

    for _ in range(2):  # the second time for nothing
        done = run(orders.folder, "republish", "--since", "1h", **orders.settings)
        assert done.returncode == 0, done.stderr
    found = await look_at_the_whole(client, system, broker, [*accepted, *unheard], {"SKU-1": 100_000})
    assert {order["status"] for order in found} == {"confirmed"}
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 100_000 - len(found)
    assert system.stderr == ""


@pytest.mark.slow
async def test_a_deleted_durable_is_founded_anew_under_its_listener(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Inventory's durable is deleted under load: it is back by itself, hears all again, and the inbox knows what it knows."""
    system = build(NATS_ACK_WAIT_S="4").start()
    client = connect(system)
    await client.stock("SKU-1", 100_000)
    wire = await nats.connect(broker.url)

    async def accident() -> None:
        js = wire.jetstream()
        for stream, name in (("ORDERS", "inventory"), ("PAYMENTS", "orders"), ("PAYMENTS", "payments-gateway")):
            await js.delete_consumer(stream, name)

    try:
        accepted = await buy_during(client, accident)
    finally:
        await wire.close()
    orders = await look_at_the_whole(client, system, broker, accepted, {"SKU-1": 100_000})
    assert {order["status"] for order in orders} == {"confirmed"}
    assert system.stderr == ""


@pytest.mark.slow
async def test_a_durable_edited_by_hand_is_named_and_makes_the_part_unready(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Drift fails loudly: the part that needs the durable is not ready and says which field differs; others are."""
    system = build()
    (inventory,) = system.parts["inventory"]
    done = run(inventory.folder, "topology", "--apply", **inventory.settings)
    assert done.returncode == 0, done.stderr
    wire = await nats.connect(broker.url)
    try:
        js: JetStreamContext = wire.jetstream()
        config = (await js.consumer_info("ORDERS", "inventory")).config
        await js.add_consumer("ORDERS", config.evolve(max_deliver=3))
        system.start()
        client = connect(system)

        async def readyz() -> Any:
            reply = await client.call(f"{inventory.url}/readyz")
            return reply.status, reply.body["checks"].get("topology")

        status, said = await eventually(readyz, lambda found: found[1] is not None)
        assert (status, said) == (503, "consumer inventory on ORDERS: max_deliver is 3, not 5")
        for module in ("orders", "payments"):
            assert (await client.call(f"{system.parts[module][0].url}/readyz")).status == 200

        done = run(inventory.folder, "topology", "--check", **inventory.settings)
        assert (done.returncode, done.stdout.strip()) == (1, said)
        done = run(inventory.folder, "topology", "--apply", **inventory.settings)
        assert done.returncode == 0, done.stderr
    finally:
        await wire.close()
    await asyncio.to_thread(inventory.kill)
    await asyncio.to_thread(inventory.start)
    await everybody_is_ready(system, client)
