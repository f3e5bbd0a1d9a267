"""The JetStream adapter keeps the contract on a cluster of three, and survives what happens to its nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.bus.contract import BusContract
from tests.bus.jetstream_stand import JetStreamStand
from tests.nats import NatsCluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    with NatsCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
async def stand(cluster: NatsCluster) -> AsyncIterator[JetStreamStand]:
    """A stand on empty streams of three replicas each."""
    async with JetStreamStand.on(cluster.urls, replicas=3) as stand:
        yield stand


class TestJetStreamCluster(BusContract):
    """Everything that every bus promises, on three nodes."""
