"""Drifts of streams and consumers that stop the work: readiness shows that nothing gets through, and the server's reason."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import nats
import pytest
from nats.js import JetStreamContext

from tests.nats import NatsServer
from tests.parts import in_parts
from tests.process.client import Client, eventually
from tests.process.server import Server, run
from tests.split.conftest import Build
from tests.split.system import System

SECOND = 1_000_000_000


Reported = Callable[[str, Callable[[JetStreamContext], Awaitable[None]], tuple[str, ...]], Awaitable[None]]


@pytest.fixture
def reported(build: Build, broker: NatsServer, connect: Callable[[System], Client]) -> Reported:
    """
    Return a function that changes the server while a system runs, places orders, and waits until the readiness of a
    module shows all of the given words.
    """

    async def wait(module: str, change: Callable[[JetStreamContext], Awaitable[None]], words: tuple[str, ...]) -> None:
        system = build(WORK_STALLED_S="3").start()
        client = connect(system)
        await client.stock("SKU-1", 100)
        await client.wait_until_final(await client.place({"SKU-1": 1}))
        connection = await nats.connect(broker.url)
        await change(connection.jetstream())
        await connection.close()
        for _ in range(12):
            await client.place({"SKU-1": 1})
        (server,) = system.servers[module]

        async def readiness() -> Any:
            return (await client.request_url(f"{server.url}/readyz")).body

        found = await eventually(readiness, lambda found: all(word in json.dumps(found["checks"]) for word in words), 20)
        assert found.get("status") != "ready"

    return wait


DRIFTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "paused": ({"pause_until": "2030-01-01T00:00:00Z"}, ("paused until 2030-01-01T00:00:00Z",)),
    "max_batch": ({"max_batch": 1}, ("max_batch is 1, not unset", "Exceeded MaxRequestBatch of 1")),
    "max_expires": ({"max_expires": SECOND}, ("max_expires is 1, not unset", "Exceeded MaxRequestExpires of 1s")),
    "headers_only": ({"headers_only": True}, ("headers_only is True, not unset",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("drift", in_parts(DRIFTS, by_day=1))
async def test_a_change_of_a_consumer_is_reported_while_the_system_runs(reported: Reported, drift: str) -> None:
    """Within seconds, by the process that consumes, whether or not any message is there."""
    changes, words = DRIFTS[drift]

    async def change(js: JetStreamContext) -> None:
        if drift == "paused":
            await js._api_request("$JS.API.CONSUMER.PAUSE.ORDERS.inventory", json.dumps(changes).encode())
            return
        config = {**(await js._api_request("$JS.API.CONSUMER.INFO.ORDERS.inventory"))["config"], **changes}
        request = {"stream_name": "ORDERS", "config": config, "action": "update"}
        try:
            await js._api_request("$JS.API.CONSUMER.CREATE.ORDERS.inventory", json.dumps(request).encode())
        except nats.js.errors.APIError:  # not changed in place: as if it had been created like that
            await js.delete_consumer("ORDERS", "inventory")
            request["action"] = "create"
            await js._api_request("$JS.API.CONSUMER.CREATE.ORDERS.inventory", json.dumps(request).encode())

    await reported("inventory", change, words)


STREAM_DRIFTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no_ack": ({"no_ack": True}, ("no_ack is True, not unset", "the outbox of orders waits for the bus")),
    "max_msgs_per_subject": ({"max_msgs_per_subject": 5}, ("max_msgs_per_subject is 5, not -1",)),
    "max_msgs": ({"max_msgs": 5}, ("max_msgs is 5, not -1", "the outbox of orders waits for the bus")),
    "sealed": ({"sealed": True}, ("sealed is True, not unset", "the outbox of orders waits for the bus")),
}


@pytest.mark.slow
@pytest.mark.parametrize("drift", in_parts(STREAM_DRIFTS, by_day=1))
async def test_a_change_of_a_stream_is_reported_while_the_system_runs(reported: Reported, drift: str) -> None:
    """By the process that publishes to it: the field that differs, and that its events wait."""
    changes, words = STREAM_DRIFTS[drift]

    async def change(js: JetStreamContext) -> None:
        config = {**(await js._api_request("$JS.API.STREAM.INFO.ORDERS"))["config"], **changes}
        await js._api_request("$JS.API.STREAM.UPDATE.ORDERS", json.dumps(config).encode())

    await reported("orders", change, words)


@pytest.mark.slow
async def test_events_that_a_purge_has_removed_are_reported_and_published_again(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """A paused consumer has not received them. The publisher reports the purge, and publishes again what was sent."""
    system = build(WORK_STALLED_S="3").start()
    client = connect(system)
    await client.stock("SKU-1", 100)
    (inventory,), (orders,) = system.servers["inventory"], system.servers["orders"]
    connection = await nats.connect(broker.url)
    js = connection.jetstream()
    try:
        await pause(js, "ORDERS", "inventory")
        placed = [await client.place({"SKU-1": 1}) for _ in range(5)]
        await shown(client, inventory, "work", "consumer inventory on ORDERS is paused until")
        await js.purge_stream("ORDERS")
        await shown(client, orders, "work", "stream ORDERS was purged")
    finally:
        await connection.close()
    done = run(orders.folder, "topology", "--apply", **{**orders.settings, "MODULES": "orders,inventory,payments"})
    assert (done.returncode, done.stdout.strip()[:40]) == (0, "consumer inventory on ORDERS: changed, p")
    for order in placed:
        assert (await client.wait_until_final(order))["status"] == "confirmed"


@pytest.mark.slow
async def test_a_change_of_what_recovers_messages_is_reported(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """Of the streams of advisories and dead letters, and of the durable that delivers the advisories."""
    system = build(WORK_STALLED_S="3").start()
    client = connect(system)
    connection = await nats.connect(broker.url)
    js = connection.jetstream()
    (orders,) = system.servers["orders"]
    try:
        await pause(js, "ADVISORIES", "patrol-orders")
        for stream in "ADVISORIES", "DEAD_LETTERS":
            config = {**(await js._api_request(f"$JS.API.STREAM.INFO.{stream}"))["config"], "max_msgs": 5}
            await js._api_request(f"$JS.API.STREAM.UPDATE.{stream}", json.dumps(config).encode())
        for stream in "ADVISORIES", "DEAD_LETTERS":
            await shown(client, orders, "topology", f"stream {stream}: max_msgs is 5, not -1")
        await shown(client, orders, "work", "consumer patrol-orders on ADVISORIES is paused until")
    finally:
        await connection.close()
    done = run(orders.folder, "topology", "--apply", **orders.settings)
    assert done.returncode == 0, done.stderr

    async def readiness() -> Any:
        return (await client.request_url(f"{orders.url}/readyz")).body.get("status")

    await eventually(readiness, lambda status: status == "ready", 20)


async def shown(client: Client, server: Server, check: str, text: str) -> None:
    """Wait until the readiness of *server* shows *text* in *check*."""

    async def readiness() -> str:
        return str((await client.request_url(f"{server.url}/readyz")).body["checks"].get(check, ""))

    await eventually(readiness, lambda found: text in found, 20)


async def pause(js: JetStreamContext, stream: str, name: str) -> None:
    """Pause the durable *name* as soon as its process has created it."""

    async def paused() -> bool:
        try:
            await js._api_request(f"$JS.API.CONSUMER.PAUSE.{stream}.{name}", b'{"pause_until": "2030-01-01T00:00:00Z"}')
        except nats.js.errors.NotFoundError:
            return False
        return True

    await eventually(paused, bool, 20)
