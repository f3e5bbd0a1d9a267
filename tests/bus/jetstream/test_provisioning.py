"""The differences that an operator sees on a server, and the changes that correct them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DiscardPolicy, RetentionPolicy, StreamInfo
from nats.js.errors import NotFoundError

from bus.jetstream.admin.provisioning import apply, diff
from bus.jetstream.admin.topology import ADVISORIES, Topology, advisory_consumer_plan
from tests.bus.jetstream.harness import until
from tests.nats import NatsServer

PLAN = Topology.of(
    ["orders", "inventory"],
    {"orders": ["inventory.reserved.v1", "inventory.rejected.v1"], "inventory-express": ["orders.created.v1.express"]},
)
PLAN = PLAN.with_consumers([advisory_consumer_plan("orders", PLAN.consumers)])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        yield server


@pytest.fixture
async def js(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(server.url)
    yield client.jetstream(timeout=2)
    await client.close()


async def test_everything_is_missing_on_an_empty_server(js: JetStreamContext) -> None:
    """The diff has a line for each stream and each consumer."""
    assert await diff(js, PLAN, replicas=1) == [
        "stream ORDERS is missing",
        "stream INVENTORY is missing",
        "stream DEAD_LETTERS is missing",
        "stream ADVISORIES is missing",
        "consumer orders on INVENTORY is missing",
        "consumer inventory-express on ORDERS is missing",
        "consumer patrol-orders on ADVISORIES is missing",
    ]


async def test_an_applied_plan_shows_no_difference(js: JetStreamContext) -> None:
    """The result is read back from the server; applying again changes nothing."""
    changes = await apply(js, PLAN, replicas=1)
    assert len(changes) == 7
    assert all(change.line.endswith(": created") and not change.is_refused for change in changes)
    assert await diff(js, PLAN, replicas=1) == []
    assert await apply(js, PLAN, replicas=1) == []
    stream = (await js.stream_info("ORDERS")).config
    assert (stream.subjects, stream.retention, stream.discard) == (["orders.>"], RetentionPolicy.LIMITS, DiscardPolicy.NEW)
    assert (stream.max_age, stream.duplicate_window, stream.num_replicas) == (47 * 3600, 120, 1)
    durable = (await js.consumer_info("INVENTORY", "orders")).config
    assert sorted(durable.filter_subjects or ()) == ["inventory.rejected.v1", "inventory.reserved.v1"]
    assert (durable.ack_policy, durable.ack_wait, durable.max_deliver) == (AckPolicy.EXPLICIT, 30, 5)
    assert durable.max_ack_pending == 1024
    assert (await js.consumer_info("ORDERS", "inventory-express")).config.max_ack_pending == 256
    assert (await js.consumer_info(ADVISORIES, "patrol-orders")).config.max_deliver == -1


async def test_each_differing_field_is_reported_and_corrected(js: JetStreamContext) -> None:
    """The diff names the actual and the planned value; messages and positions stay."""
    await apply(js, PLAN, replicas=1)
    await js.publish("orders.created.v1", b"{}")
    stream = (await js.stream_info("ORDERS")).config
    await js.update_stream(stream.evolve(discard=DiscardPolicy.OLD, duplicate_window=60, subjects=["orders.created.>"]))
    durable = (await js.consumer_info("INVENTORY", "orders")).config
    await js.add_consumer(
        "INVENTORY",
        durable.evolve(ack_wait=10, max_deliver=3, filter_subjects=["inventory.reserved.v1", "inventory.x.v1"]),
    )
    await js.delete_consumer("ORDERS", "inventory-express")
    found = await diff(js, PLAN, replicas=1)
    assert found == [
        "stream ORDERS: subjects is orders.created.>, not orders.>",
        "stream ORDERS: discard is old, not new",
        "stream ORDERS: duplicate_window is 60, not 120",
        "consumer orders on INVENTORY: ack_wait is 10, not 30",
        "consumer orders on INVENTORY: max_deliver is 3, not 5",
        "consumer orders on INVENTORY: filter_subjects lacks inventory.rejected.v1",
        "consumer orders on INVENTORY: filter_subjects has inventory.x.v1 beyond the plan",
        "consumer inventory-express on ORDERS is missing",
    ]
    changes = await apply(js, PLAN, replicas=1)
    assert "stream ORDERS: changed, discard was old, not new" in [change.line for change in changes]
    assert (len(changes), any(change.is_refused for change in changes)) == (len(found), False)
    assert await diff(js, PLAN, replicas=1) == []
    assert (await js.stream_info("ORDERS")).state.messages == 1


async def test_a_resource_that_cannot_be_changed_in_place_is_reported_and_stays(js: JetStreamContext) -> None:
    """Deleting is for a person: a stream holds messages, a durable a position. All other changes are applied."""
    await js.add_stream(name="ORDERS", subjects=["orders.>"], retention=RetentionPolicy.WORK_QUEUE)
    await js.publish("orders.created.v1", b"{}")
    await js.add_stream(name="INVENTORY", subjects=["inventory.>"])
    await js.add_consumer("INVENTORY", ConsumerConfig(durable_name="orders", ack_policy=AckPolicy.ALL))
    changes = await apply(js, PLAN, replicas=1)
    refused = [change.line for change in changes if change.is_refused]
    assert any(line.startswith("stream ORDERS: the server refuses: ") for line in refused)
    assert any(line.startswith("consumer orders on INVENTORY: ") for line in refused)
    assert "stream DEAD_LETTERS: created" in [change.line for change in changes]
    assert (await js.stream_info("ORDERS")).state.messages == 1
    left = await diff(js, PLAN, replicas=1)
    assert "stream ORDERS: retention is workqueue, not limits" in left
    assert "consumer orders on INVENTORY: ack_policy is all, not explicit" in left
    assert await apply(js, PLAN, replicas=1) != []


async def test_replicas_that_the_server_cannot_provide_are_reported(js: JetStreamContext) -> None:
    """One node cannot keep three replicas."""
    changes = await apply(js, PLAN, replicas=3)
    assert changes[0].is_refused
    assert "replicas" in changes[0].line
    await apply(js, PLAN, replicas=1)
    assert "stream ORDERS: num_replicas is 1, not 3" in await diff(js, PLAN, replicas=3)


async def test_a_server_without_an_answer_is_no_difference(server: NatsServer, js: JetStreamContext) -> None:
    """A server that hangs gives no information about its streams and consumers."""
    await apply(js, PLAN, replicas=1)
    server.pause()
    try:
        with pytest.raises(TimeoutError):
            await diff(js, PLAN, replicas=1, patience_seconds=0.1)
    finally:
        server.resume()


async def test_a_server_that_answers_late_is_provisioned(
    server: NatsServer, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster that elects its leader does not answer for seconds; what is requested twice is created once."""
    server.pause()
    applying = asyncio.create_task(apply(js, PLAN, replicas=1))
    try:
        await until(lambda: "JetStream does not answer" in caplog.text)
    finally:
        server.resume()
    assert [change.line.partition(": ")[2] for change in await applying] == ["created"] * 7
    assert await diff(js, PLAN, replicas=1) == []


class LaggingJetStream(JetStreamContext):
    """JetStream as a node of a cluster shows it that has not yet learned what another node has just created."""

    def __init__(self, js: JetStreamContext) -> None:
        super().__init__(js._nc, timeout=2)
        self.unknown: list[str] = []
        """What the next requests do not find, although it exists."""

    async def add_stream(self, *args: Any, **kwargs: Any) -> StreamInfo:
        info = await super().add_stream(*args, **kwargs)
        # The first time a request reads it, the second time one creates a consumer on it.
        self.unknown += [str(info.config.name), f"consumer on {info.config.name}"]
        return info

    async def add_consumer(self, stream: str, *args: Any, **kwargs: Any) -> ConsumerInfo:
        self._find(f"consumer on {stream}")
        info: ConsumerInfo = await super().add_consumer(stream, *args, **kwargs)
        self.unknown.append(info.name)
        return info

    async def _api_request(self, req_subject: str, req: bytes = b"", timeout: float = 5) -> dict[str, Any]:  # noqa: ASYNC109
        if ".INFO." in req_subject:
            self._find(req_subject.rpartition(".")[2])
        return await super()._api_request(req_subject, req, timeout)

    def _find(self, name: str) -> None:
        if name in self.unknown:
            self.unknown.remove(name)
            raise NotFoundError(404, "stream not found", 10059)


async def test_what_a_cluster_does_not_find_yet_is_no_refusal(js: JetStreamContext, caplog: pytest.LogCaptureFixture) -> None:
    """Right after its creation a stream or consumer may be unknown to the node that answers; a request for it is repeated."""
    lagging = LaggingJetStream(js)
    changes = await apply(lagging, PLAN, replicas=1)
    assert [change.line.partition(": ")[2] for change in changes] == ["created"] * 7
    assert lagging.unknown == ["consumer on DEAD_LETTERS"], "the plan has no consumer there"
    assert await diff(js, PLAN, replicas=1) == []
    assert "does not answer" not in caplog.text


async def test_a_consumer_of_a_stream_that_is_refused_is_refused_at_once(js: JetStreamContext) -> None:
    """Only what this call has created is waited for."""
    began = time.monotonic()
    changes = await apply(js, PLAN, replicas=3)
    assert all(change.is_refused for change in changes)
    assert len(changes) == 7
    assert time.monotonic() - began < 10
