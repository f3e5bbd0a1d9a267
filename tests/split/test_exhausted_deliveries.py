"""A message whose consumer is killed at every delivery attempt becomes one dead letter."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import nats
import pytest

from tests.nats import NatsServer
from tests.process.client import Client, eventually
from tests.split.conftest import Build
from tests.split.invariants import consumers_of, wait_until_ready
from tests.split.system import System

ACK_WAIT_SECONDS = 3
ATTEMPTS = 5


@pytest.mark.night
async def test_a_message_whose_consumer_is_killed_five_times_is_one_dead_letter(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """
    After five deliveries without an acknowledgement there is one dead letter, with the error ``no_answer``.

    Each time payments holds the message and cannot write, because another connection locks its database, and is killed.
    That leaves nothing but the advisory of the server. After a replay the message has its effect.
    """
    system = build(NATS_ACK_WAIT_S=str(ACK_WAIT_SECONDS)).start()
    client = connect(system)
    await client.stock("SKU-1", 10)
    (payments,) = system.servers["payments"]
    await wait_until_ready(system, client)

    async def delivered() -> int:
        consumer = consumers_of(broker)["INVENTORY/payments"]
        return int(consumer["delivered"]["consumer_seq"])

    first = await delivered()
    order_id = ""
    connection = await nats.connect(broker.url)
    try:
        js = connection.jetstream(timeout=30.0)
        # On a slow machine one process may use up more than one attempt.
        while (seen := await delivered()) < first + ATTEMPTS:
            with closing(sqlite3.connect(system.database_of("payments"), isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                if not order_id:
                    order_id = await client.place({"SKU-1": 1})
                else:
                    await js.resume_consumer("INVENTORY", "payments")
                await eventually(delivered, lambda count, before=seen: count > before, 60.0)  # type: ignore[misc]
                await asyncio.to_thread(payments.kill)
                other.execute("ROLLBACK")
            # It starts while the database is free, and must not receive the message before the database is locked again.
            await js.pause_consumer("INVENTORY", "payments", "2100-01-01T00:00:00Z")
            await asyncio.to_thread(payments.start)
        assert await delivered() == first + ATTEMPTS
        await js.resume_consumer("INVENTORY", "payments")
    finally:
        await connection.close()

    async def dead_letters() -> list[Any]:
        return list((await client.request_url(f"{payments.url}/v1/dead-letters")).body["items"])

    (dead_letter,) = await eventually(dead_letters, bool, 60.0)
    assert (dead_letter["consumer"], dead_letter["subject"]) == ("payments", "inventory.reserved.v1")
    assert (dead_letter["error"], dead_letter["attempts"], dead_letter["replays"]) == ("no_answer", ATTEMPTS, 0)
    assert dead_letter["message"]["body"]["order_id"] == order_id
    assert (await client.get(f"/v1/orders/{order_id}"))["status"] == "reserved"

    # Neither another scan for exhausted deliveries nor another start stores it again.
    await asyncio.to_thread(payments.kill)
    await asyncio.to_thread(payments.start)
    reply = await client.request_url(f"{payments.url}/v1/dead-letters/{dead_letter['id']}/replay", "POST")
    assert reply.status == 202
    assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    assert [each["id"] for each in await dead_letters()] == [dead_letter["id"]]
    # Inventory ships the order after it is confirmed.
    await eventually(lambda: client.get("/v1/inventory/SKU-1"), lambda product: bool(product["on_hand"] == 9))
