"""Malformed messages from other programs: each becomes one dead letter and affects no other message."""

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
from tests.split.invariants import check_system, consumers_of
from tests.split.system import System

CREATED = "orders.created.v1"
VALID = {
    "version": "v1",
    "order_id": "01890000-0000-7000-8000-000000000001",
    "customer_id": "c-1",
    "items": [{"product_id": "SKU-1", "quantity": 1}],
    "priority": "normal",
}
RANDOM_BYTES = random.Random(0).randbytes(100 * 1024)

MALFORMED: Mapping[str, bytes] = {
    "not JSON": b"{'order_id': 'x'}",
    "broken schema": json.dumps({name: value for name, value in VALID.items() if name != "items"}).encode(),
    "wrong types": json.dumps(VALID | {"items": [{"product_id": "SKU-1", "quantity": "1"}]}).encode(),
    "empty": b"",
    "random bytes": RANDOM_BYTES,
    "duplicate names": json.dumps(VALID).replace('"quantity": 1', '"quantity": 1, "quantity": 1').encode(),
    "nested too deeply": b"[" * 1000 + b"]" * 1000,
    "NaN": json.dumps(VALID | {"items": [{"product_id": "SKU-1", "quantity": float("nan")}]}).encode(),
}
UNKNOWN = ("orders.created.v99", "orders.nonsense.v1")


async def dead_letters_at(client: Client, system: System, module: str) -> list[Any]:
    """Return the dead letters of *module*, from its process."""
    return list((await client.request_url(f"{system.servers[module][0].url}/v1/dead-letters?limit=200")).body["items"])


@pytest.mark.slow
async def test_each_malformed_message_becomes_one_dead_letter(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """
    Each unreadable message is one dead letter of the consumer that could not read it, after the first attempt.

    A message with an unknown subject is a dead letter of the module that owns the stream. Two replays change only the
    counters of the dead letter.
    """
    system = build().start()
    client = connect(system)
    await client.stock("SKU-1", 100)
    accepted = [await client.place({"SKU-1": 1}) for _ in range(5)]
    connection = await nats.connect(broker.url)
    try:
        js = connection.jetstream()
        await js.stream_info("ORDERS")
        for body in MALFORMED.values():
            await js.publish(CREATED, body, headers={"Nats-Msg-Id": str(uuid4()), "ce-id": str(uuid4())})
        await js.publish(CREATED, b"no headers at all")
        await js.publish(CREATED, b"{", headers={"ce-id": str(uuid4()), "ce-versions": f"v1,v{'9' * 5000}"})
        for subject in UNKNOWN:
            await js.publish(subject, json.dumps(VALID).encode(), headers={"ce-id": str(uuid4())})
        accepted += [await client.place({"SKU-1": 1}) for _ in range(5)]

        async def dead_letters() -> list[Any]:
            return [
                dead_letter
                for module in system.servers
                for dead_letter in await dead_letters_at(client, system, module)
            ]

        async def dead_letter_count() -> int:
            return len(await dead_letters())

        count = len(MALFORMED) + 2 + len(UNKNOWN)
        await eventually(dead_letter_count, lambda found: found >= count, 30.0)
        stored = await dead_letters()
        of_inventory = await dead_letters_at(client, system, "inventory")
        assert {
            (dead_letter["consumer"], dead_letter["subject"], dead_letter["attempts"]) for dead_letter in of_inventory
        } == {("inventory", CREATED, 1)}
        assert len(of_inventory) == len(MALFORMED) + 2
        assert {dead_letter["error"] for dead_letter in of_inventory} <= {"unreadable", "invalid"}
        of_orders = await dead_letters_at(client, system, "orders")
        assert sorted(
            (dead_letter["consumer"], dead_letter["subject"], dead_letter["error"]) for dead_letter in of_orders
        ) == [("orders-strays", subject, "unknown_subject") for subject in sorted(UNKNOWN)]
        assert await dead_letters_at(client, system, "payments") == []

        async def published() -> list[str]:
            state = (await js.stream_info("DEAD_LETTERS", subjects_filter=">")).state
            return sorted(subject for subject, number in (state.subjects or {}).items() for _ in range(number))

        expected = sorted(
            [f"dead.inventory.{CREATED}"] * len(of_inventory) + [f"dead.orders-strays.{each}" for each in UNKNOWN]
        )
        await eventually(published, lambda found: found == expected)
        assert consumers_of(broker)["ORDERS/inventory"]["num_redelivered"] == 0, (
            "a malformed message was delivered again"
        )

        for _ in range(2):
            for dead_letter in stored:
                module = dead_letter["consumer"].partition("-")[0]
                url = f"{system.servers[module][0].url}/v1/dead-letters/{dead_letter['id']}/replay"
                assert (await client.request_url(url, "POST")).status == 202
        replayed = await eventually(
            dead_letters,
            lambda found: (
                all(dead_letter["replays"] == 2 for dead_letter in found)
                and all(dead_letter["attempts"] == 3 for dead_letter in found)
            ),
            30.0,
        )
        assert {dead_letter["id"] for dead_letter in replayed} == {dead_letter["id"] for dead_letter in stored}
        assert len(replayed) == count
    finally:
        await connection.close()
    orders = await check_system(client, system, broker, accepted, {"SKU-1": 100}, dead_letters=count)
    assert {order["status"] for order in orders} == {"confirmed"}
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 90
    assert system.stderr == ""


@pytest.mark.night
async def test_a_redelivered_event_has_one_effect(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """With new broker ids the stream stores an event repeatedly; the inbox recognises it, also after a restart."""
    system = build(NATS_ACK_WAIT_S="4").start()
    client = connect(system)
    await client.stock("SKU-1", 100)
    order_id = await client.place({"SKU-1": 1})
    await client.wait_until_final(order_id)
    connection = await nats.connect(broker.url)
    try:
        js = connection.jetstream()
        raw = await js.get_msg("ORDERS", subject=CREATED, direct=False, seq=1, next=True)
        assert raw.data is not None
        assert raw.headers is not None
        for number in range(10):
            await js.publish(CREATED, raw.data, headers={**raw.headers, "Nats-Msg-Id": str(uuid4())})
            if number == 5:
                await asyncio.to_thread(system.servers["inventory"][0].kill)
                await asyncio.to_thread(system.servers["inventory"][0].start)
    finally:
        await connection.close()
    await check_system(client, system, broker, [order_id], {"SKU-1": 100})
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 99
