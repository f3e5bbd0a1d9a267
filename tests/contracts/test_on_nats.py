"""Old and new versions on a real server: a rolling upgrade neither loses nor duplicates an order."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from attrs import define
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from app.bootstrap import build_runners
from app.messaging.outbox_relay import OutboxRelay
from app.messaging.versions.usage import blockers
from bus.contracts.versions import VERSIONS
from bus.jetstream.admin.listing import JetStreamConsumerDirectory
from bus.jetstream.bus import JetStreamBus
from modules.inventory.state import Product
from tests.bus.jetstream.harness import JetStreamHarness
from tests.contracts.releases import NEW, OLD, RETIRED, Release
from tests.nats import NatsServer
from tests.runtime.harness import CONTEXT, NO_CONTENT, Harness, harness_at, oid, product, submitted, until

pytestmark = pytest.mark.slow

V1, V2 = "orders.created.v1", "orders.created.v2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats"), accounts=10) as server:
        yield server


@define
class Fleet:
    """Processes of several releases with one server and one database."""

    harness: Harness
    nats: JetStreamHarness
    running: dict[str, list[Any]]

    async def start(self, name: str, module: str, release: Release) -> None:
        """Start one more process of *module* in *release*, under *name*."""
        bus: JetStreamBus = await self.nats.another(name=name)
        store, clock, metrics = self.harness.stores[module], self.harness.clock, self.harness.metrics
        relay = OutboxRelay(store, bus, self.harness.dead_letter_store, clock, metrics)
        descriptor = release.modules[module]
        runner = build_runners(
            [descriptor], {descriptor.name: store}, release.contracts, {descriptor.name: relay}, clock, metrics,
            delivers_locally=False, remote_subjects=(), rng=random.Random(1),
        )[descriptor.name]  # fmt: skip
        subscription = await bus.subscribe(module, release.contracts.subjects_for(descriptor.consumes))
        loops = [asyncio.create_task(loop) for loop in (runner.consume(subscription), runner.run(), relay.run())]
        self.running[name] = [bus, runner, loops]
        if module == "orders":
            self.harness.runners["orders"] = runner

    async def stop(self, name: str) -> None:
        """Stop a process; its unsettled deliveries go to another one."""
        bus, _, loops = self.running.pop(name)
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await self.nats.run(bus.close(0))
        self.nats.buses.remove(bus)

    async def reserved(self) -> int:
        found: Product | None = await self.harness.runners["inventory"].get(Product, "A")
        assert found is not None
        return found.reserved


@asynccontextmanager
async def fleet_at(path: Path, server: NatsServer) -> AsyncIterator[Fleet]:
    async with JetStreamHarness.on(server.account_urls(), ack_wait_seconds=15.0) as on_nats, harness_at(path / "test.db") as harness:
        fleet = Fleet(harness, on_nats, {})
        await harness.submit("inventory", product(1000))
        try:
            yield fleet
        finally:
            for name in list(fleet.running):
                await fleet.stop(name)


ORDERS = 25
"""Orders in each round, of one piece each, so the reserved stock is the number of processed orders."""


async def submit_orders(fleet: Fleet, round: int) -> None:
    """Submit to all processes of orders in turn."""
    producers = [runner for name, (_, runner, _) in fleet.running.items() if name.startswith("orders")]
    for n in range(ORDERS):
        order_id, runner = oid(round * ORDERS + n), producers[n % len(producers)]
        await runner.submit(submitted(order_id), id=order_id, trace=CONTEXT, respond=NO_CONTENT)


async def test_a_rolling_upgrade_and_its_reversal_lose_and_duplicate_nothing(tmp_path: Path, server: NatsServer) -> None:
    """
    The releases change one process at a time, and back again, while orders are submitted; each reserves its stock once.

    First both sides are old, then a new consumer runs beside the old ones, then the producer is new, then the old
    consumers stop; and then all of it in reverse.
    """
    async with fleet_at(tmp_path, server) as fleet:
        steps: list[tuple[str, str, Release | None]] = [
            # Three members and two messages an order: so each member gets messages of both versions.
            ("inventory-0", "inventory", OLD),
            ("inventory-1", "inventory", OLD),
            ("orders-1", "orders", OLD),
            ("inventory-2", "inventory", NEW),
            ("orders-2", "orders", NEW),
            ("inventory-0", "inventory", None),
            ("inventory-1", "inventory", None),
            ("orders-retired", "orders", RETIRED),
            ("orders-beside", "orders", NEW),
            ("inventory-retired", "inventory", RETIRED),
            ("orders-retired", "orders", None),
            ("inventory-3", "inventory", OLD),
            ("inventory-2", "inventory", None),
            ("orders-3", "orders", OLD),
        ]
        submitted_count = 0
        for round, (name, module, release) in enumerate(steps):
            if release is None:
                await fleet.stop(name)
            else:
                await fleet.start(name, module, release)
            if "orders-1" in fleet.running:
                await submit_orders(fleet, round)
                submitted_count += ORDERS
        expected = submitted_count

        async def is_all_reserved() -> bool:
            return await fleet.reserved() == expected

        await until(is_all_reserved)
        await fleet.nats.rest()
        assert await fleet.reserved() == expected
        assert await fleet.harness.dead_letter_store.list(None, None, None, 10) == []
        assert fleet.nats.store.kept == {}


async def test_each_version_published_by_hand_is_processed_or_dead_lettered(
    tmp_path: Path, server: NatsServer
) -> None:
    """v1 alone is upcast; an event in both versions is processed once; an invalid message is dead-lettered at once."""
    async with fleet_at(tmp_path, server) as fleet:
        js = fleet.nats.bus.js()
        await fleet.start("inventory-1", "inventory", NEW)
        body = {"order_id": oid(1), "customer_id": "c", "items": [{"product_id": "A", "quantity": 1}], "version": "v1"}
        newer = {**body, "version": "v2", "shipping_address": None}
        await js.publish(V1, json.dumps(body).encode(), headers={"ce-id": "one"})
        for subject, value in ((V2, {**newer, "order_id": oid(2)}), (V1, {**body, "order_id": oid(2)})):
            headers = {"ce-id": "two", VERSIONS: "v1,v2"}
            await js.publish(subject, json.dumps(value).encode(), headers=headers)
        await js.publish(V2, json.dumps({**newer, "order_id": oid(3)}).encode(), headers={"ce-id": "three"})
        await js.publish(V2, json.dumps({**newer, "shipping_address": {}}).encode(), headers={"ce-id": "bad"})
        await js.publish(V1, b"{", headers={"ce-id": "worse"})
        dead_letters = await fleet.nats.dead_letters(2)
        assert {(dead_letter.error, dead_letter.attempts) for dead_letter in dead_letters} == {("invalid", 1), ("unreadable", 1)}
        assert any("/shipping_address" in dead_letter.detail for dead_letter in dead_letters)

        async def are_three_reserved() -> bool:
            return await fleet.reserved() == 3

        await until(are_three_reserved)
        await fleet.nats.rest()
        assert await fleet.reserved() == 3


async def test_the_directory_lists_the_consumers_on_the_server(
    tmp_path: Path, server: NatsServer
) -> None:
    """Our own and others, durable or not, with a name, a wildcard or no filter; each with its pending messages."""
    async with fleet_at(tmp_path, server) as fleet:
        js = fleet.nats.bus.js()
        await fleet.start("inventory-1", "inventory", NEW)
        await js.add_consumer("ORDERS", ConsumerConfig(durable_name="warehouse", filter_subject=V1))
        await js.add_consumer("ORDERS", ConsumerConfig(durable_name="audit", filter_subject="orders.>"))
        await js.add_consumer("ORDERS", ConsumerConfig(name="anonymous", inactive_threshold=60))
        await js.publish(V1, b"{}")
        subscription = await js.pull_subscribe_bind("warehouse", stream="ORDERS")
        await subscription.fetch(1, timeout=5)
        directory = JetStreamConsumerDirectory(lambda: js, ["ORDERS", "ORDERS", "PAYMENTS", "NOTHING"])

        async def are_all_there() -> bool:
            return len(await directory.consumers()) == 4

        await until(are_all_there)
        found = {each.consumer: each for each in await directory.consumers()}
        assert found.keys() == {"inventory", "warehouse", "audit", "anonymous"}
        assert {V1, V2} <= set(found["inventory"].subjects)
        assert (found["warehouse"].subjects, found["warehouse"].pending) == ((V1,), 1)
        assert (found["audit"].subjects, found["anonymous"].subjects) == (("orders.>",), (">",))
        assert {(each.stream, each.redelivered) for each in found.values()} == {("ORDERS", 0)}
        assert (found["warehouse"].in_progress, found["audit"].in_progress) == (1, 0)
        streams = {each.name: each for each in await directory.streams()}
        assert streams.keys() == {"ORDERS", "PAYMENTS"}
        orders = streams["ORDERS"]
        assert (orders.messages, orders.last_sequence, orders.replicas) == (1, 1, 1)
        assert orders.bytes > 0
        reasons = blockers(V1, [V2], [found["warehouse"], found["audit"], found["anonymous"]])
        assert reasons == (
            "warehouse consumes it and names no newer version",
            "warehouse has 1 unsettled messages",
            "audit consumes it by a wildcard and names no newer version",
            "audit has 1 unsettled messages",
            "anonymous consumes it by a wildcard and names no newer version",
            "anonymous has 1 unsettled messages",
        )


async def test_an_unavailable_server_is_not_reported_as_one_without_consumers() -> None:
    """The query fails instead of returning an empty list."""

    def unavailable() -> JetStreamContext:
        raise nats.errors.ConnectionClosedError

    with pytest.raises(nats.errors.ConnectionClosedError):
        await JetStreamConsumerDirectory(unavailable, ["ORDERS"]).consumers()
