"""What others put onto our subjects: each piece of rubbish is laid down once, and nobody beside it notices."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

import nats
import pytest

from tests.nats import NatsServer
from tests.process.client import Client, eventually
from tests.split.conftest import Build
from tests.split.system import System
from tests.split.world import consumers_of, look_at_the_whole

CREATED = "orders.created.v1"
GOOD = {
    "version": "v1",
    "order_id": "01890000-0000-7000-8000-000000000001",
    "customer_id": "c-1",
    "items": [{"product_id": "SKU-1", "quantity": 1}],
    "priority": "normal",
}
NOISE = random.Random(0).randbytes(100 * 1024)

RUBBISH: Mapping[str, bytes] = {
    "not JSON": b"{'order_id': 'x'}",
    "broken schema": json.dumps({name: value for name, value in GOOD.items() if name != "items"}).encode(),
    "wrong types": json.dumps(GOOD | {"items": [{"product_id": "SKU-1", "quantity": "1"}]}).encode(),
    "empty": b"",
    "noise": NOISE,
    "duplicate names": json.dumps(GOOD).replace('"quantity": 1', '"quantity": 1, "quantity": 1').encode(),
    "nested beyond measure": b"[" * 1000 + b"]" * 1000,
    "NaN": json.dumps(GOOD | {"items": [{"product_id": "SKU-1", "quantity": float("nan")}]}).encode(),
}
UNKNOWN = ("orders.created.v99", "orders.nonsense.v1")


async def letters_at(client: Client, system: System, module: str) -> list[Any]:
    """Return the dead letters that the part of *module* shows."""
    return list((await client.call(f"{system.parts[module][0].url}/v1/dead-letters?limit=200")).body["items"])


@pytest.mark.slow
async def test_rubbish_is_laid_down_once_and_nobody_else_notices(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """
    Each unreadable message is one dead letter of the consumer that could not read it, at the first try.

    A message on a subject that nobody knows is one of the stream's own module. Replayed twice, nothing comes of it but
    that the letter counts it.
    """
    system = build().start()
    client = connect(system)
    await client.stock("SKU-1", 100)
    accepted = [await client.place({"SKU-1": 1}) for _ in range(5)]
    wire = await nats.connect(broker.url)
    try:
        js = wire.jetstream()
        await js.stream_info("ORDERS")
        for body in RUBBISH.values():
            await js.publish(CREATED, body, headers={"Nats-Msg-Id": str(uuid4()), "ce-id": str(uuid4())})
        await js.publish(CREATED, b"no headers at all")
        await js.publish(CREATED, b"{", headers={"ce-id": str(uuid4()), "ce-versions": f"v1,v{'9' * 5000}"})
        for subject in UNKNOWN:
            await js.publish(subject, json.dumps(GOOD).encode(), headers={"ce-id": str(uuid4())})
        accepted += [await client.place({"SKU-1": 1}) for _ in range(5)]

        async def laid_down() -> list[Any]:
            return [dead_letter for module in system.parts for dead_letter in await letters_at(client, system, module)]

        async def number_laid_down() -> int:
            return len(await laid_down())

        count = len(RUBBISH) + 2 + len(UNKNOWN)
        await eventually(number_laid_down, lambda found: found >= count, 30.0)
        letters = await laid_down()
        of_inventory = await letters_at(client, system, "inventory")
        assert {(dead_letter["consumer"], dead_letter["subject"], dead_letter["attempts"]) for dead_letter in of_inventory} == {("inventory", CREATED, 1)}
        assert len(of_inventory) == len(RUBBISH) + 2
        assert {dead_letter["error"] for dead_letter in of_inventory} <= {"unreadable", "invalid"}
        of_orders = await letters_at(client, system, "orders")
        assert sorted((dead_letter["consumer"], dead_letter["subject"], dead_letter["error"]) for dead_letter in of_orders) == [
            ("orders-strays", subject, "unknown_subject") for subject in sorted(UNKNOWN)
        ]
        assert await letters_at(client, system, "payments") == []

        async def published() -> list[str]:
            state = (await js.stream_info("DEAD_LETTERS", subjects_filter=">")).state
            return sorted(subject for subject, many in (state.subjects or {}).items() for _ in range(many))

        wanted = sorted([f"dead.inventory.{CREATED}"] * len(of_inventory) + [f"dead.orders-strays.{each}" for each in UNKNOWN])
        await eventually(published, lambda found: found == wanted)
        assert consumers_of(broker)["ORDERS/inventory"]["num_redelivered"] == 0, "rubbish was tried again"

        for _ in range(2):
            for dead_letter in letters:
                module = dead_letter["consumer"].partition("-")[0]
                url = f"{system.parts[module][0].url}/v1/dead-letters/{dead_letter['id']}/replay"
                assert (await client.call(url, "POST")).status == 202
        again = await eventually(
            laid_down,
            lambda found: all(dead_letter["replays"] == 2 for dead_letter in found)
            and all(dead_letter["attempts"] == 3 for dead_letter in found),
            30.0,
        )
        assert {dead_letter["id"] for dead_letter in again} == {dead_letter["id"] for dead_letter in letters}
        assert len(again) == count
    finally:
        await wire.close()
    orders = await look_at_the_whole(client, system, broker, accepted, {"SKU-1": 100}, dead=count)
    assert {order["status"] for order in orders} == {"confirmed"}
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 90
    assert system.stderr == ""


@pytest.mark.slow
async def test_an_event_that_comes_again_has_one_effect(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Under fresh broker ids the stream takes an event again and again, and the inbox knows it, through a restart, too."""
    system = build(NATS_ACK_WAIT_S="4").start()
    client = connect(system)
    await client.stock("SKU-1", 100)
    order_id = await client.place({"SKU-1": 1})
    await client.followed(order_id)
    wire = await nats.connect(broker.url)
    try:
        js = wire.jetstream()
        raw = await js.get_msg("ORDERS", subject=CREATED, direct=False, seq=1, next=True)
        assert raw.data is not None
        assert raw.headers is not None
        for number in range(10):
            await js.publish(CREATED, raw.data, headers={**raw.headers, "Nats-Msg-Id": str(uuid4())})
            if number == 5:
                await asyncio.to_thread(system.parts["inventory"][0].kill)
                await asyncio.to_thread(system.parts["inventory"][0].start)
    finally:
        await wire.close()
    await look_at_the_whole(client, system, broker, [order_id], {"SKU-1": 100})
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 99
