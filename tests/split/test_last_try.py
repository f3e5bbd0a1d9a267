"""A message whose worker dies each time, until there is no further time: found all the same, and laid down once."""

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
from tests.split.system import System
from tests.split.world import consumers_of, everybody_is_ready

ACK_WAIT_SECONDS = 3
TRIES = 5


@pytest.mark.slow
async def test_a_message_that_outlives_five_workers_is_a_dead_letter(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """
    Nobody answers for a message five times over; then it is one dead letter, with the error ``no_answer``.

    Each time payments has it in hand and cannot write, because somebody holds its database, and is killed so. That
    leaves nothing behind but the server's advisory. Replayed, the message does what it was meant to.
    """
    system = build(NATS_ACK_WAIT_S=str(ACK_WAIT_SECONDS)).start()
    client = connect(system)
    await client.stock("SKU-1", 10)
    (payments,) = system.parts["payments"]
    await everybody_is_ready(system, client)

    async def delivered() -> int:
        consumer = consumers_of(broker)["INVENTORY/payments"]
        return int(consumer["delivered"]["consumer_seq"])

    first = await delivered()
    order_id = ""
    wire = await nats.connect(broker.url)
    try:
        js = wire.jetstream(timeout=30.0)
        # On a slow machine one worker may live to see a try more than one end.
        while (seen := await delivered()) < first + TRIES:
            with closing(sqlite3.connect(system.database_of("payments"), isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                if not order_id:
                    order_id = await client.place({"SKU-1": 1})
                else:
                    await js.resume_consumer("INVENTORY", "payments")
                await eventually(delivered, lambda count, before=seen: count > before, 60.0)  # type: ignore[misc]
                await asyncio.to_thread(payments.kill)
                other.execute("ROLLBACK")
            # It starts while nobody holds the database, and must not come to the message before somebody does.
            await js.pause_consumer("INVENTORY", "payments", "2100-01-01T00:00:00Z")
            await asyncio.to_thread(payments.start)
        assert await delivered() == first + TRIES
        await js.resume_consumer("INVENTORY", "payments")
    finally:
        await wire.close()

    async def letters() -> list[Any]:
        return list((await client.call(f"{payments.url}/v1/dead-letters")).body["items"])

    (dead_letter,) = await eventually(letters, bool, 60.0)
    assert (dead_letter["consumer"], dead_letter["subject"]) == ("payments", "inventory.reserved.v1")
    assert (dead_letter["error"], dead_letter["attempts"], dead_letter["replays"]) == ("no_answer", TRIES, 0)
    assert dead_letter["message"]["body"]["order_id"] == order_id
    assert (await client.get(f"/v1/orders/{order_id}"))["status"] == "reserved"

    # Neither another look of the patrol nor another start finds it again.
    await asyncio.to_thread(payments.kill)
    await asyncio.to_thread(payments.start)
    reply = await client.call(f"{payments.url}/v1/dead-letters/{dead_letter['id']}/replay", "POST")
    assert reply.status == 202
    assert (await client.followed(order_id))["status"] == "confirmed"
    assert [each["id"] for each in await letters()] == [dead_letter["id"]]
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 9
