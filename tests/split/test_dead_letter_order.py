"""On NATS the events of an order wait behind a dead letter of it, and follow it in their order (DEAD_LETTER_ORDER=key)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import nats
import pytest

from tests.nats import NatsServer
from tests.process.client import Client, eventually
from tests.split.conftest import Build
from tests.split.invariants import consumers_of
from tests.split.system import System

CAPTURED = "payments.captured.v1"
ORDERS = "PAYMENTS/orders"
PAYMENTS = "INVENTORY/payments"


def dead_letters_at(client: Client, url: str) -> Callable[[], Any]:
    async def letters() -> list[Any]:
        return list((await client.request_url(f"{url}/v1/dead-letters")).body["items"])

    return letters


async def order_with_a_dead_letter(system: System, broker: NatsServer, client: Client) -> tuple[str, list[Any]]:
    """Place an order, hold it with an event that nothing can read before it is paid; return its id and its dead letters."""

    async def consumers() -> set[str]:
        return set(consumers_of(broker))

    connection = await nats.connect(broker.url)
    try:
        js = connection.jetstream(timeout=30.0)
        await eventually(consumers, lambda found: {PAYMENTS, ORDERS} <= found)  # a process may be ready before it subscribes
        await js.pause_consumer("INVENTORY", "payments", "2100-01-01T00:00:00Z")
        order_id = await client.place({"SKU-1": 1})
        await eventually(lambda: client.get(f"/v1/orders/{order_id}"), lambda order: bool(order["status"] == "reserved"))
        headers = {"Nats-Msg-Id": str(uuid4()), "ce-id": str(uuid4()), "ce-subject": order_id}
        await js.publish(CAPTURED, b"{}", headers=headers)
        letters = dead_letters_at(client, system.servers["orders"][0].url)
        await eventually(letters, lambda found: len(found) == 1)
        await js.resume_consumer("INVENTORY", "payments")
    finally:
        await connection.close()
    found = await eventually(letters, lambda found: len(found) == 2, 60.0)
    return order_id, sorted(found, key=lambda letter: str(letter["error"]))


@pytest.mark.night
async def test_the_payment_of_an_order_waits_for_its_dead_letter(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """
    It is listed, and kept over a kill of the process; another order goes on. A discard lets it go.

    The server delivers it once, and its dead letter is not published.
    """
    system = build(DEAD_LETTER_ORDER="key").start()
    client = connect(system)
    await client.stock("SKU-1", 10)
    order_id, (first, waiting) = await order_with_a_dead_letter(system, broker, client)
    assert (first["error"], waiting["error"], waiting["attempts"]) == ("invalid", "waits", 0)
    assert (waiting["subject"], waiting["detail"]) == (CAPTURED, f"waits for the dead letter {first['id']}")
    assert (await client.wait_until_final(await client.place({"SKU-1": 2})))["status"] == "confirmed"
    assert consumers_of(broker)[ORDERS]["num_redelivered"] == 0

    (orders,) = system.servers["orders"]
    await asyncio.to_thread(system.kill, orders)
    await asyncio.to_thread(system.restart, orders)
    address = f"{orders.url}/v1/dead-letters"
    refused = await client.request_url(f"{address}/{waiting['id']}/replay", "POST")
    assert (refused.status, refused.body["code"]) == (409, "waits")
    assert (await client.get(f"/v1/orders/{order_id}"))["status"] == "reserved"

    assert (await client.request_url(f"{address}/{first['id']}", "DELETE")).status == 204
    assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    assert await dead_letters_at(client, orders.url)() == []
    connection = await nats.connect(broker.url)
    try:
        state = (await connection.jetstream().stream_info("DEAD_LETTERS", subjects_filter=">")).state
    finally:
        await connection.close()
    assert state.subjects == {f"dead.orders.{CAPTURED}": 1}
    assert system.stderr == ""
