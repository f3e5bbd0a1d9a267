"""A NATS cluster with three replicas of every stream: without a leader, with a hanging leader, with a killed leader."""

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
from tests.split.invariants import check_system, wait_until_ready
from tests.split.system import System

BUYERS = 4
POST_SECONDS_MAX = 1.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    """A cluster of three running nodes."""
    with NatsCluster(tmp_path / "nats") as cluster:
        yield cluster


def leader_of(cluster: NatsCluster, stream: str) -> NatsServer | None:
    """Return the node that leads *stream*, or None while there is no leader."""
    for node in cluster.nodes:
        for account in node.ask("/jsz?streams=true").get("account_details") or ():
            for found in account["stream_detail"]:
                if found["name"] == stream and found["cluster"].get("leader"):
                    return cluster.node(found["cluster"]["leader"])
    return None


@asynccontextmanager
async def buyers(client: Client) -> AsyncIterator[tuple[list[str], list[float]]]:
    """Place orders until the end of the block; yield the accepted ids and the seconds that each POST took."""
    accepted: list[str] = []
    seconds: list[float] = []
    is_stopped = False

    async def buy() -> None:
        while not is_stopped:
            began = time.monotonic()
            accepted.append(await client.place({"SKU-1": 1}))
            seconds.append(time.monotonic() - began)
            await asyncio.sleep(0.02)  # the rate of a client

    async with asyncio.TaskGroup() as group:
        for _ in range(BUYERS):
            group.create_task(buy())
        yield accepted, seconds
        is_stopped = True


async def pause(leader: NatsServer) -> None:
    """Pause the node for nine seconds: its connections stay open, but it does not answer."""
    leader.pause()
    await asyncio.sleep(9.0)
    leader.resume()


async def kill(leader: NatsServer) -> None:
    """Kill the node; start it again after eight seconds."""
    await asyncio.to_thread(leader.kill)
    await asyncio.sleep(8.0)
    await asyncio.to_thread(leader.start)


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [pytest.param(pause, marks=pytest.mark.night), kill])
async def test_a_failing_leader_does_not_delay_orders(
    cluster: NatsCluster,
    build: Build,
    connect: Callable[[System], Client],
    disturb: Callable[[NatsServer], Awaitable[None]],
) -> None:
    """POST does not wait while the leader of the orders stream is out of reach; afterwards every order is confirmed."""
    system = build(cluster.urls, NATS_REPLICAS="3", NATS_ACK_WAIT_S="5").start()
    client = connect(system)
    await client.stock("SKU-1", 100_000)
    await wait_until_ready(system, client, 30.0)
    first = await client.place({"SKU-1": 1})
    await client.wait_until_final(first)

    async def leader() -> NatsServer | None:
        return leader_of(cluster, "ORDERS")

    node = await eventually(leader, lambda found: found is not None)
    assert node is not None
    async with buyers(client) as (accepted, seconds):
        await asyncio.sleep(1.0)
        await disturb(node)
        await asyncio.sleep(1.0)
    seconds.sort()
    print(
        f"{disturb.__name__}: {len(seconds)} POSTs, median {seconds[len(seconds) // 2] * 1000:.0f} ms,"
        f" 99 % {seconds[int(len(seconds) * 0.99)] * 1000:.0f} ms, slowest {seconds[-1] * 1000:.0f} ms"
    )
    assert seconds[int(len(seconds) * 0.99)] < POST_SECONDS_MAX
    for node in cluster.nodes:
        await asyncio.to_thread(node.wait_until_ready)
    orders = await check_system(client, system, cluster, [first, *accepted], {"SKU-1": 100_000}, seconds=90.0)
    assert {order["status"] for order in orders} == {"confirmed"}
    assert system.stderr == ""


@pytest.mark.slow
def test_topology_apply_waits_for_a_leader(cluster: NatsCluster, tmp_path: Path) -> None:
    """While the cluster starts, the command prints that it waits; it applies the topology once there is a leader."""
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
        assert command.stderr.readline() == "fulfilment: JetStream does not answer; retrying for 30 s\n"
        for node in cluster.nodes[1:]:
            node.start(wait=False)
        output, errors = command.communicate(timeout=120)
    assert command.returncode == 0, errors
    assert "stream ORDERS: created" in output.splitlines()
