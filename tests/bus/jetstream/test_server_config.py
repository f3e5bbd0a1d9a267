"""Every field of a stream and of a consumer that a server accepts is compared with the plan, the few named ones apart."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import nats
import pytest
from attrs import frozen
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import APIError

from app.clock import SystemClock
from bus.jetstream.admin.configs import consumer_config, stream_config
from bus.jetstream.admin.losses import LossDetector
from bus.jetstream.admin.provisioning import apply, diff
from bus.jetstream.admin.server_config import NOT_COMPARED, ServerConfig, differences, read_consumer, read_stream
from bus.jetstream.admin.stalls import StallDetector
from bus.jetstream.admin.topology import Topology, consumer_plans, stream_plan
from bus.jetstream.admin.verifier import TopologyVerifier
from tests.nats import NatsServer

SECOND = 1_000_000_000
CANDIDATES: tuple[Any, ...] = (
    True, 1, 2, 5, 60 * SECOND, 300 * SECOND, "x", "all", "new", "last", "none", "explicit", "file", "memory", "limits",
    "interest", "workqueue", "old", "s2", "async", "original", "overflow", "50%", "2030-01-01T00:00:00Z", [SECOND, 2 * SECOND],
    ["x"], {"x": "y"}, {"src": ">", "dest": "copy.>"}, {"max_ack_pending": 3}, [{"name": "OTHER"}], {"name": "OTHER"},
)  # fmt: skip
"""Values of every type; the server refuses those that a field cannot have."""

NEWER = {"max_batch", "max_expires", "max_bytes", "priority_groups", "priority_policy", "priority_timeout", "direct", "persist_mode"}
"""Fields that the client does not know."""

STREAM_FIELDS = sorted({field.name for field in dataclasses.fields(StreamConfig)} | NEWER)
CONSUMER_FIELDS = sorted({field.name for field in dataclasses.fields(ConsumerConfig)} | NEWER)
[PLAN] = consumer_plans("inventory", ["orders.created.v1"])
STREAM = stream_config(stream_plan("ORDERS"), replicas=1, dedup_seconds=120)
CONSUMER = consumer_config(PLAN, ack_wait_seconds=30, max_tries=5)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@frozen
class Api:
    """The JetStream API of the server, with configurations as JSON."""

    js: JetStreamContext

    async def reset(self) -> None:
        for info in await self.js.streams_info():
            await self.js.delete_stream(str(info.config.name))

    async def stream(self, config: dict[str, Any]) -> ServerConfig | None:
        """Create the stream; return it as it is on the server, or None if the server refuses it."""
        await self.reset()
        try:
            await self.js._api_request("$JS.API.STREAM.CREATE.ORDERS", json.dumps(config).encode())
        except APIError:
            return None
        return await read_stream(self.js, "ORDERS")

    async def consumer(self, config: dict[str, Any]) -> ServerConfig | None:
        """Create the consumer; return it as it is on the server, or None if the server refuses it."""
        for info in await self.js.consumers_info("ORDERS"):
            await self.js.delete_consumer("ORDERS", info.name)
        request = {"stream_name": "ORDERS", "config": config, "action": "create"}
        try:
            await self.js._api_request("$JS.API.CONSUMER.CREATE.ORDERS.inventory", json.dumps(request).encode())
            return await read_consumer(self.js, "ORDERS", "inventory")
        except APIError:
            return None


@pytest.fixture
async def api(server: NatsServer) -> AsyncIterator[Api]:
    client = await nats.connect(server.url)
    yield Api(client.jetstream(timeout=5))
    await client.close()


def changed_fields(planned: ServerConfig, found: ServerConfig) -> set[str]:
    names = {*planned.config, *found.config} - {"metadata"}
    return {name for name in names if planned.config.get(name) != found.config.get(name)}


@pytest.mark.parametrize("field", STREAM_FIELDS)
async def test_each_field_of_a_stream_is_compared(api: Api, field: str) -> None:
    """Whatever value of it the server accepts, and whatever else that changes, is named."""
    planned = await api.stream(STREAM.as_dict())
    assert planned is not None
    assert differences(STREAM, planned) == []
    for value in CANDIDATES:
        found = await api.stream({**STREAM.as_dict(), field: value})
        if found is None:
            continue
        changed = changed_fields(planned, found) - set(NOT_COMPARED[StreamConfig])
        named = {line.split(" ")[0] for line in differences(STREAM, found)}
        assert named == changed, (field, value)


@pytest.mark.parametrize("field", CONSUMER_FIELDS)
async def test_each_field_of_a_consumer_is_compared(api: Api, field: str) -> None:
    """Also those that the client does not know, and those of a consumer that is paused."""
    await api.stream(STREAM.as_dict())
    planned = await api.consumer(CONSUMER.as_dict())
    assert planned is not None
    assert differences(CONSUMER, planned) == []
    for value in CANDIDATES:
        found = await api.consumer({**CONSUMER.as_dict(), field: value})
        if found is None:
            continue
        changed = changed_fields(planned, found) - set(NOT_COMPARED[ConsumerConfig])
        if field.startswith("deliver_"):
            changed -= {"max_waiting"}  # a push consumer has none
        named = {line.split(" ")[0] for line in differences(CONSUMER, found)}
        assert named == changed, (field, value)
    if field == "pause_until":
        found = await api.consumer({**CONSUMER.as_dict(), field: "2030-01-01T00:00:00Z"})
        assert found is not None
        assert found.paused == "2030-01-01T00:00:00Z"


@pytest.mark.parametrize("field", ["anything", "max_things"])
@pytest.mark.parametrize("value", [1, True, "x", [1], {"x": 1}])
def test_an_unknown_field_of_a_newer_server_is_named(field: str, value: Any) -> None:
    """Its default (nothing, zero, false, empty, the word default) is not."""
    for wanted in STREAM, CONSUMER:
        assert [line.split(" ")[0] for line in differences(wanted, ServerConfig({**wanted.as_dict(), field: value}, {}))] == [field]
        defaults: list[Any] = [None, 0, False, "", [], {}, "default", "none"]
        for default in defaults:
            assert differences(wanted, ServerConfig({**wanted.as_dict(), field: default}, {})) == []


async def test_check_names_each_drift_and_apply_corrects_it(api: Api) -> None:
    """The drifts of the case: each is found; those that the server can change in place are corrected, the pause included."""
    await api.reset()
    topology = Topology.of(["orders"], {"inventory": ["orders.created.v1"]})
    await apply(api.js, topology, replicas=1)
    request = api.js._api_request
    stream = {**(await read_stream(api.js, "ORDERS")).config, "max_msgs_per_subject": 5, "max_msgs": 100, "no_ack": True}
    await request("$JS.API.STREAM.UPDATE.ORDERS", json.dumps(stream).encode())
    config = dict((await read_consumer(api.js, "ORDERS", "inventory")).config)
    config |= {"headers_only": True, "max_batch": 1, "max_expires": SECOND, "pause_until": "2030-01-01T00:00:00Z"}
    update = {"stream_name": "ORDERS", "config": config, "action": "update"}
    await request("$JS.API.CONSUMER.CREATE.ORDERS.inventory", json.dumps(update).encode())
    await request("$JS.API.CONSUMER.PAUSE.ORDERS.inventory", b'{"pause_until": "2030-01-01T00:00:00Z"}')
    assert await diff(api.js, topology, replicas=1) == [
        "stream ORDERS: max_msgs_per_subject is 5, not -1",
        "stream ORDERS: no_ack is True, not unset",
        "stream ORDERS: max_msgs is 100, not -1",
        "consumer inventory on ORDERS: headers_only is True, not unset",
        "consumer inventory on ORDERS: max_batch is 1, not unset",
        "consumer inventory on ORDERS: max_expires is 1, not unset",
        "consumer inventory on ORDERS: paused until 2030-01-01T00:00:00Z",
    ]
    assert not any(change.is_refused for change in await apply(api.js, topology, replicas=1))
    assert await diff(api.js, topology, replicas=1) == []


async def test_apply_keeps_what_an_operator_may_set_at_will(api: Api) -> None:
    """While it corrects another field, and though the plan names none of them; the check reports none of them."""
    await api.reset()
    topology = Topology.of(["orders"], {"inventory": ["orders.created.v1"]})
    await apply(api.js, topology, replicas=1)
    request = api.js._api_request
    chosen = {
        "description": "of shop 7", "compression": "s2", "max_bytes": 2**30, "allow_direct": True, "deny_delete": True,
    }  # fmt: skip
    stream = {**(await read_stream(api.js, "ORDERS")).config, **chosen}
    await request("$JS.API.STREAM.UPDATE.ORDERS", json.dumps(stream).encode())
    consumer = {**(await read_consumer(api.js, "ORDERS", "inventory")).config, "description": "of shop 7", "sample_freq": "50"}
    update = {"stream_name": "ORDERS", "config": consumer, "action": "update"}
    await request("$JS.API.CONSUMER.CREATE.ORDERS.inventory", json.dumps(update).encode())
    assert await diff(api.js, topology, replicas=1) == []
    await request("$JS.API.STREAM.UPDATE.ORDERS", json.dumps({**stream, "max_msgs": 5}).encode())
    update["config"] = {**consumer, "headers_only": True}
    await request("$JS.API.CONSUMER.CREATE.ORDERS.inventory", json.dumps(update).encode())
    changes = await apply(api.js, topology, replicas=1)
    assert [(change.line, change.is_refused) for change in changes] == [
        ("stream ORDERS: changed, max_msgs was 5, not -1", False),
        ("consumer inventory on ORDERS: changed, headers_only was True, not unset", False),
    ]
    found = (await read_stream(api.js, "ORDERS")).config
    assert {name: found[name] for name in chosen} == chosen
    found = (await read_consumer(api.js, "ORDERS", "inventory")).config
    assert (found["description"], found["sample_freq"]) == ("of shop 7", "50")


@pytest.mark.parametrize(
    ("denied", "requests"),
    [
        ([], 2),
        (['permissions violation for publish to "$js.api.stream.info.orders"'], 0),
        (['permissions violation for publish to "$js.api.stream.info.payments"'], 2),
    ],
)
async def test_only_a_stream_that_may_not_be_looked_at_is_left_out(denied: list[str], requests: int) -> None:
    """One that gives no answer, because its cluster elects a leader, is looked at again: a later drift is reported."""
    asked: list[str] = []

    class Management:
        _prefix, _timeout = "$JS.API", 5

        async def _api_request(self, subject: str, **options: float) -> dict[str, Any]:
            asked.append(subject)
            if len(asked) == 1:
                raise TimeoutError
            return {"config": {**STREAM.as_dict(), "max_msgs": 5}}

    verifier = TopologyVerifier(
        Management,  # type: ignore[arg-type]
        lambda: denied,
        SystemClock(),
        may_exist=lambda stream: False,
        replicas=1,
        dedup_seconds=120,
        ack_wait_seconds=30,
        max_tries=5,
        stalls=StallDetector(lambda: 0.0),
        losses=LossDetector(lambda: 0.0),
    )
    for _ in range(2):
        await verifier.verify_again(["ORDERS"], [], lambda: True)
    assert asked == ["$JS.API.STREAM.INFO.ORDERS"] * requests
    assert verifier.problems == (["stream ORDERS: max_msgs is 5, not -1"] if requests else [])
