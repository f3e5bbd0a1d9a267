"""What one module's NATS user can do to another module, on a real server with the accounts of the deployment."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

import nats
import pytest

from app.clock import SystemClock
from bus.jetstream.bus import JetStreamBus
from bus.jetstream.servers import Servers
from bus.port import Message
from tests.bus.features import InMemoryDeadLetters
from tests.nats import NatsServer

ID = "01990000-0000-7000-8000-000000000001"
FORGED = b'{"forged": true}'


@pytest.fixture
async def bus(server: NatsServer) -> AsyncIterator[JetStreamBus]:
    """The bus of the module payments, under its own user."""
    payments = JetStreamBus(
        SystemClock(), InMemoryDeadLetters(), Servers(urls=server.urls, user="payments", password="p-payments"), name="payments"
    )
    await payments.connect()
    yield payments
    await payments.close(1)


async def stored(server: NatsServer) -> list[tuple[str, bytes]]:
    """Return subject and body of everything in the stream of payments."""
    client = await nats.connect(server.url, user="payments", password="p-payments", inbox_prefix="_INBOX_payments")
    try:
        js = client.jetstream()
        state = (await js.stream_info("PAYMENTS")).state
        found = [await js.get_msg("PAYMENTS", seq=number) for number in range(max(state.first_seq, 1), state.last_seq + 1)]
    finally:
        await client.close()
    return [(str(message.subject), message.data or b"") for message in found]


async def take_the_id(server: NatsServer, subject: str, id: str) -> None:
    """
    Take *id* in the stream of payments, with the permissions of inventory alone.

    Its own message carries the id, and its pull request names *subject* as the reply: the server itself publishes there.
    """
    client = await nats.connect(server.url, user="inventory", password="p-inventory", inbox_prefix="_INBOX_inventory")
    js = client.jetstream()
    config = (await js.consumer_info("INVENTORY", "inventory")).config
    consumed = (config.filter_subjects or [str(config.filter_subject)])[0]
    headers = {"Nats-Msg-Id": id, "ce-id": id, "ce-source": "/x"}
    await js.publish(consumed.replace(">", "x").replace("*", "x"), FORGED, headers=headers)
    request = json.dumps({"batch": 100, "no_wait": True}).encode()
    try:
        async with asyncio.timeout(20):
            # The first request is answered with "no messages" when the consumer has not yet seen the new message.
            while FORGED not in [body for _, body in await stored(server)]:
                await client.publish("$JS.API.CONSUMER.MSG.NEXT.INVENTORY.inventory", request, reply=subject)
                await client.flush()
                await asyncio.sleep(0.05)
    finally:
        await client.close()


async def test_an_event_whose_id_was_taken_is_stored_under_another_one(
    server: NatsServer, bus: JetStreamBus, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with the subject and the source of what was found, and the true event is not lost."""
    await take_the_id(server, "payments.x", ID)
    async with asyncio.timeout(20):
        await bus.publish(Message("payments.captured.v1", ID, b'{"true": 1}', "o-1", {"ce-id": ID, "ce-source": "/payments"}))
    assert ("payments.captured.v1", b'{"true": 1}') in await stored(server)
    logged = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(logged) == 1
    assert "foreign message" in logged[0].getMessage()
    assert "subject inventory.replay." in logged[0].getMessage()
    assert "/x" in logged[0].getMessage()


async def test_a_true_duplicate_is_stored_once(server: NatsServer, bus: JetStreamBus, caplog: pytest.LogCaptureFixture) -> None:
    """As after a crash of the relay: the same subject and body under the same id."""
    id = os.urandom(8).hex()
    message = Message("payments.captured.v1", id, json.dumps({"once": id}).encode(), "o-1", {"ce-id": id})
    async with asyncio.timeout(20):
        await bus.publish(message)
        await asyncio.gather(*(bus.publish(message) for _ in range(5)))
        await bus.publish(message)
    assert [body for _, body in await stored(server)].count(message.body) == 1
    assert "foreign" not in caplog.text
