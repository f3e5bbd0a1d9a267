"""Drifts of streams and consumers that stop the work: readiness shows that nothing gets through, and the server's reason."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import nats
import pytest
from nats.js import JetStreamContext

from tests.nats import NatsServer
from tests.process.client import Client, eventually
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
@pytest.mark.parametrize("drift", DRIFTS)
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
@pytest.mark.parametrize("drift", STREAM_DRIFTS)
async def test_a_change_of_a_stream_is_reported_while_the_system_runs(reported: Reported, drift: str) -> None:
    """By the process that publishes to it: the field that differs, and that its events wait."""
    changes, words = STREAM_DRIFTS[drift]

    async def change(js: JetStreamContext) -> None:
        config = {**(await js._api_request("$JS.API.STREAM.INFO.ORDERS"))["config"], **changes}
        await js._api_request("$JS.API.STREAM.UPDATE.ORDERS", json.dumps(config).encode())

    await reported("orders", change, words)
