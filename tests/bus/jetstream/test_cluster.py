"""The JetStream adapter keeps the contract on a cluster of three, and survives what happens to its nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from bus.errors import PublishRetryable
from tests.bus.contract import CREATED, BusContract, message
from tests.bus.jetstream.harness import JetStreamHarness, say, until
from tests.nats import NatsCluster, NatsServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    with NatsCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


HEAD_START_SECONDS = 0.5
"""
How late three nodes may be from the start: they agree on each step, share one disk, and one of them answers for the others.

That things happen at once is held on one node; here it is that they happen.
"""


@pytest.fixture
async def harness(cluster: NatsCluster) -> AsyncIterator[JetStreamHarness]:
    """A stand on empty streams of three replicas each."""
    async with JetStreamHarness.on(cluster.urls, replicas=3, lag_seconds=HEAD_START_SECONDS) as harness:
        yield harness


@pytest.fixture
async def patient(cluster: NatsCluster) -> AsyncIterator[JetStreamHarness]:
    """The same, with streams that remember ids for as long as in earnest."""
    async with JetStreamHarness.on(cluster.urls, replicas=3, dedup_seconds=120.0) as harness:
        yield harness


class TestJetStreamCluster(BusContract):
    """Everything that every bus promises, on three nodes."""


class Load:
    """Messages published one after the other and heard by one member, until told to stop."""

    def __init__(self, harness: JetStreamHarness) -> None:
        self.harness = harness
        self.sent: list[str] = []
        self.heard: set[str] = set()
        self.longest_seconds = 0.0
        self._is_over = asyncio.Event()
        self._speaking = asyncio.create_task(self._speak())
        self._listening = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """End, and fail if anything that was taken is not heard."""
        self._is_over.set()
        await asyncio.wait_for(self._speaking, 60)
        await until(lambda: self.heard >= set(self.sent), 30)
        self._listening.cancel()
        await asyncio.wait([self._listening])
        assert self.heard == set(self.sent)
        assert len(self.sent) == len(set(self.sent))

    async def _speak(self) -> None:
        while not self._is_over.is_set():
            batch = [message() for _ in range(20)]
            began = time.monotonic()
            await say(self.harness.bus, batch)
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            self.sent += [each.id for each in batch]

    async def _listen(self) -> None:
        member = await self.harness.bus.subscribe("inventory", [CREATED])
        while True:
            for delivery in await member.fetch(100, 1.0):
                self.heard.add(delivery.message.id)
                await delivery.ack()


async def leader_of(cluster: NatsCluster, harness: JetStreamHarness) -> NatsServer:
    info = await harness.bus.js().stream_info("ORDERS")
    assert info.cluster is not None
    return cluster.node(str(info.cluster.leader))


@pytest.mark.parametrize("way", ["kill", "pause"])
async def test_a_lost_leader_loses_nothing(cluster: NatsCluster, patient: JetStreamHarness, way: str) -> None:
    """Killed or hanging, under load: what was taken is heard, and publishing goes on with the next leader."""
    load = Load(patient)
    await until(lambda: len(load.heard) >= 200)
    leader = await leader_of(cluster, patient)
    try:
        leader.kill() if way == "kill" else leader.pause()
        sent = len(load.sent)
        await until(lambda: len(load.sent) > sent + 200 and len(load.heard) > sent + 200, 40)
        assert load.longest_seconds < 30
    finally:
        leader.restart() if way == "kill" else leader.resume()
    await load.stop()


async def test_without_a_quorum_nothing_is_taken_and_nothing_is_lost(cluster: NatsCluster, patient: JetStreamHarness) -> None:
    """Every publish ends in time; once two of three are back, all of them said again are heard, each once."""
    member = await patient.bus.subscribe("inventory", [CREATED])
    await say(patient.bus, [message(b"before")])
    others = [node for node in cluster.nodes if node is not await leader_of(cluster, patient)]
    for node in others:
        node.kill()
    messages = [message() for _ in range(50)]
    try:
        began = time.monotonic()
        ends = await asyncio.gather(*(patient.bus.publish(each) for each in messages), return_exceptions=True)
        assert {type(end) for end in ends} == {PublishRetryable}
        assert time.monotonic() - began < 10
    finally:
        for node in others:
            node.start(wait=False)
        for node in others:
            node.wait_until_ready()
    await say(patient.bus, messages)
    heard: list[str] = []
    while len(set(heard)) < 51 and (batch := await member.fetch(100, 10)):
        for delivery in batch:
            heard.append(delivery.message.id)
            await delivery.ack()
    assert set(heard) >= {each.id for each in messages}
    info = await patient.bus.js().stream_info("ORDERS")
    assert info.state.messages == 51
