"""The JetStream adapter passes the contract suite on a cluster of three nodes, and survives the loss of nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from bus.errors import PublishRetryable
from tests.bus.contract import CREATED, BusContract, message
from tests.bus.jetstream.harness import JetStreamHarness, publish_all, until
from tests.nats import NatsCluster, NatsServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    with NatsCluster(tmp_path_factory.mktemp("cluster"), accounts=150) as cluster:
        yield cluster


CLUSTER_LAG_SECONDS = 0.5
"""
How late three nodes may be: they agree on each step, and share one disk.

That things happen promptly is tested on one node; here it is tested that they happen.
"""


@pytest.fixture
async def harness(cluster: NatsCluster, request: pytest.FixtureRequest) -> AsyncIterator[JetStreamHarness]:
    """A bus on streams of three replicas each, in an account of its own."""
    options = getattr(request, "param", {})
    async with JetStreamHarness.on(cluster.account_urls(), replicas=3, lag_seconds=CLUSTER_LAG_SECONDS, **options) as harness:
        yield harness


@pytest.fixture
async def lasting(cluster: NatsCluster) -> AsyncIterator[JetStreamHarness]:
    """The same, with streams that remember ids for as long as in production."""
    async with JetStreamHarness.on(cluster.account_urls(), replicas=3, dedup_seconds=120.0) as harness:
        yield harness


class TestJetStreamCluster(BusContract):
    """The contract suite on three nodes."""


class Load:
    """Publishes messages continuously and receives them with one member, until it is stopped."""

    def __init__(self, harness: JetStreamHarness) -> None:
        self.harness = harness
        self.sent: list[str] = []
        self.received: set[str] = set()
        self.longest_seconds = 0.0
        self._is_over = asyncio.Event()
        self._publishing = asyncio.create_task(self._publish())
        self._consuming = asyncio.create_task(self._consume())

    async def stop(self) -> None:
        """Stop, and fail if a message that was stored is not received."""
        self._is_over.set()
        await asyncio.wait_for(self._publishing, 60)
        await until(lambda: self.received >= set(self.sent), 30)
        self._consuming.cancel()
        await asyncio.wait([self._consuming])
        assert self.received == set(self.sent)
        assert len(self.sent) == len(set(self.sent))

    async def _publish(self) -> None:
        while not self._is_over.is_set():
            batch = [message() for _ in range(20)]
            began = time.monotonic()
            await publish_all(self.harness.bus, batch)
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            self.sent += [each.id for each in batch]

    async def _consume(self) -> None:
        member = await self.harness.bus.subscribe("inventory", [CREATED])
        while True:
            for delivery in await member.fetch(100, 1.0):
                self.received.add(delivery.message.id)
                await delivery.ack()


async def leader_of(cluster: NatsCluster, harness: JetStreamHarness) -> NatsServer:
    info = await harness.bus.js().stream_info("ORDERS")
    assert info.cluster is not None
    return cluster.node(str(info.cluster.leader))


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_lost_leader_loses_no_message(cluster: NatsCluster, lasting: JetStreamHarness, fault: str) -> None:
    """Killed or hanging, under load: every stored message is received, and publishing goes on with the next leader."""
    load = Load(lasting)
    await until(lambda: len(load.received) >= 200)
    leader = await leader_of(cluster, lasting)
    try:
        leader.kill() if fault == "kill" else leader.pause()
        sent = len(load.sent)
        await until(lambda: len(load.sent) > sent + 200 and len(load.received) > sent + 200, 40)
        assert load.longest_seconds < 30
    finally:
        leader.restart() if fault == "kill" else leader.resume()
    await load.stop()


async def test_without_a_quorum_no_message_is_stored_and_none_is_lost(cluster: NatsCluster, lasting: JetStreamHarness) -> None:
    """
    Every publish ends in time; once two of three nodes are back, all messages published again are received, each once.
    """
    member = await lasting.bus.subscribe("inventory", [CREATED])
    await publish_all(lasting.bus, [message(b"before")])
    followers = [node for node in cluster.nodes if node is not await leader_of(cluster, lasting)]
    for node in followers:
        node.kill()
    messages = [message() for _ in range(50)]
    try:
        began = time.monotonic()
        ends = await asyncio.gather(*(lasting.bus.publish(each) for each in messages), return_exceptions=True)
        assert {type(end) for end in ends} == {PublishRetryable}
        assert time.monotonic() - began < 10
    finally:
        for node in followers:
            node.start(wait=False)
        for node in followers:
            node.wait_until_ready()
    await publish_all(lasting.bus, messages)
    received: list[str] = []
    while len(set(received)) < 51 and (batch := await member.fetch(100, 10)):
        for delivery in batch:
            received.append(delivery.message.id)
            await delivery.ack()
    assert set(received) >= {each.id for each in messages}
    info = await lasting.bus.js().stream_info("ORDERS")
    assert info.state.messages == 51
