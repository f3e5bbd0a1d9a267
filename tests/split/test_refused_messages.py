"""Events that NATS can never take: each is logged once and becomes a dead letter; the events behind them go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js.api import StreamConfig

from tests.nats import NatsServer
from tests.process.client import Client, eventually
from tests.split.conftest import Build
from tests.split.system import System

LARGE, SMALL = 150, 20


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that takes 4 KiB in one message."""
    with NatsServer(tmp_path / "nats", config="max_payload: 4096") as server:
        yield server


async def place_all(client: Client) -> list[str]:
    """Place many orders of a hundred lines and a few of one line; return the ids of the latter."""
    large = {f"SKU-{n}-{'x' * 50}": 1 for n in range(100)}
    for _ in range(LARGE // 50):
        await asyncio.gather(*(client.place(large) for _ in range(50)))
    return [await client.place({"SKU-1": 1}) for _ in range(SMALL)]


async def dead_letters(client: Client) -> list[Any]:
    return await client.list_all("/v1/dead-letters?consumer=orders-outbox")


@pytest.mark.slow
async def test_messages_larger_than_the_server_allows_do_not_hold_up_the_others(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """The small orders are confirmed; once the server allows more, the dead letters can be replayed."""
    system = build().start()
    client = connect(system)
    await client.stock("SKU-1", 100)
    for order in await place_all(client):
        assert (await client.wait_until_final(order))["status"] == "confirmed"
    found = await eventually(lambda: dead_letters(client), lambda found: len(found) == 2 * LARGE)
    assert {(each["error"], each["attempts"]) for each in found} == {("not_publishable", 1)}
    assert "max_payload" in found[0]["detail"]
    assert (await client.get("/readyz"))["status"] == "ready"
    lines = [line for line in system.servers["orders"][0].lines if "not_publishable" in line]
    assert len(lines) == 2 * LARGE  # one line for each, and no more
    broker.config = ""
    broker.restart()
    reply = await client.request("POST", "/v1/dead-letters/replay", {"consumer": "orders-outbox", "dry_run": False})
    assert reply.body == {"matched": 2 * LARGE, "replayed": 2 * LARGE}
    done = "/v1/orders?status=cancelled&limit=200"  # unknown products
    await eventually(lambda: client.get(done), lambda found: len(found["items"]) == LARGE, 60.0)


@pytest.mark.night
async def test_messages_that_the_stream_refuses_do_not_hold_up_the_others(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """An operator has limited the size of a message in the stream: the server's answer decides."""
    broker.config = ""
    broker.restart()
    system = build().start()
    client = connect(system)
    await client.stock("SKU-1", 100)
    connection = await nats.connect(broker.url)
    config = (await connection.jetstream().stream_info("ORDERS")).config
    await connection.jetstream().update_stream(StreamConfig(**{**config.__dict__, "max_msg_size": 4096}))
    await connection.close()
    for order in await place_all(client):
        assert (await client.wait_until_final(order))["status"] == "confirmed"
    found = await eventually(lambda: dead_letters(client), lambda found: len(found) == 2 * LARGE)
    assert "message size exceeds maximum allowed (10054)" in found[0]["detail"]
