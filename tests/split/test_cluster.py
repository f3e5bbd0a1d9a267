"""Three brokers that keep every stream with three replicas: they have no leader yet, or it hangs, or dies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.nats import NatsCluster, NatsServer
from tests.process.client import Client, eventually
from tests.process.server import environment_of
from tests.split.conftest import Build
from tests.split.system import System
from tests.split.world import everybody_is_ready, look_at_the_whole

BUYERS = 4
POST_SECONDS_MAX = 1.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    """Three nodes that run."""
    with NatsCluster(tmp_path / "nats") as cluster:
        yield cluster


def leader_of(cluster: NatsCluster, stream: str) -> NatsServer | None:
    """Return the node that leads *stream*, as the others see it; None while there is none."""
    for node in cluster.nodes:
        for account in node.ask("/jsz?streams=true").get("account_details") or ():
            for found in account["stream_detail"]:
                if found["name"] == stream and found["cluster"].get("leader"):
                    return cluster.node(found["cluster"]["leader"])
    return None


@asynccontextmanager
async def customers_of(client: Client) -> AsyncIterator[tuple[list[str], list[float]]]:
    """Enter for customers who buy until the end of the block: what was accepted, and how long each POST took."""
    accepted: list[str] = []
    seconds: list[float] = []
    is_over = False

    async def buy() -> None:
        while not is_over:
            began = time.monotonic()
            accepted.append(await client.place({"SKU-1": 1}))
            seconds.append(time.monotonic() - began)
            await asyncio.sleep(0.02)  # the pace of customers

    async with asyncio.TaskGroup() as group:
        for _ in range(BUYERS):
            group.create_task(buy())
        yield accepted, seconds
        is_over = True


async def hang(leader: NatsServer) -> None:
    """Stop it for nine seconds: its connections stay open, and nobody answers."""
    leader.pause()
    await asyncio.sleep(9.0)
    leader.resume()


async def die(leader: NatsServer) -> None:
    """Kill it; start it again after a while."""
    await asyncio.to_thread(leader.kill)
    await asyncio.sleep(8.0)
    await asyncio.to_thread(leader.start)


@pytest.mark.slow
@pytest.mark.parametrize("accident", [hang, die])
async def test_a_leader_in_trouble_costs_post_nothing(
    cluster: NatsCluster,
    build: Build,
    connect: Callable[[System], Client],
    accident: Callable[[NatsServer], Awaitable[None]],
) -> None:
    """While the stream of orders has no leader that answers, POST does not wait for one; afterwards every order ends."""
    system = build(cluster.urls, NATS_REPLICAS="3", NATS_ACK_WAIT_S="5").start()
    client = connect(system)
    await client.stock("SKU-1", 100_000)
    await everybody_is_ready(system, client, 30.0)
    first = await client.place({"SKU-1": 1})
    await client.followed(first)

    async def leader() -> NatsServer | None:
        return leader_of(cluster, "ORDERS")

    leads = await eventually(leader, lambda node: node is not None)
    assert leads is not None
    async with customers_of(client) as (accepted, seconds):
        await asyncio.sleep(1.0)
        await accident(leads)
        await asyncio.sleep(1.0)
    seconds.sort()
    print(
        f"{accident.__name__}: {len(seconds)} POSTs, median {seconds[len(seconds) // 2] * 1000:.0f} ms,"
        f" 99 % {seconds[int(len(seconds) * 0.99)] * 1000:.0f} ms, slowest {seconds[-1] * 1000:.0f} ms"
    )
    assert seconds[int(len(seconds) * 0.99)] < POST_SECONDS_MAX
    for node in cluster.nodes:
        await asyncio.to_thread(node.wait_until_ready)
    orders = await look_at_the_whole(
        client, system, cluster, [first, *accepted], {"SKU-1": 100_000}, seconds=90.0
    )
    assert {order["status"] for order in orders} == {"confirmed"}
    assert system.stderr == ""


@pytest.mark.slow
def test_a_cluster_without_a_leader_is_waited_for(cluster: NatsCluster, tmp_path: Path) -> None:
    """As when all of it starts together: the command says that it waits, and does its work once there is a leader."""
    for node in cluster.nodes[1:]:
        node.kill()
    with subprocess.Popen(
        [sys.executable, "-m", "app", "topology", "--apply"],
        cwd=tmp_path,
        env=environment_of({"BUS": "nats", "NATS_URL": ",".join(cluster.urls), "NATS_REPLICAS": "3"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stderr is not None
        assert command.stderr.readline() == "fulfilment: JetStream does not answer; asking again for 30 s\n"
        for node in cluster.nodes[1:]:
            node.start(wait=False)
        done, troubles = command.communicate(timeout=60)
    assert command.returncode == 0, troubles
    assert "stream ORDERS: created" in done.splitlines()
