"""A part that is asked to leave finishes what it has in hand, with NATS there or not, and loses nothing by it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import pytest

from tests.nats import NatsServer
from tests.process.client import LOST, Client
from tests.split.conftest import Build
from tests.split.system import System
from tests.split.world import look_at_the_whole

GRACE_SECONDS = 10.0


@pytest.mark.slow
@pytest.mark.parametrize("is_nats_there", [True, False], ids=["with NATS", "without NATS"])
async def test_sigterm_under_load_ends_every_part_with_0(
    build: Build, broker: NatsServer, connect: Callable[[System], Client], is_nats_there: bool
) -> None:
    """All leave with 0 within the grace; there are exactly the orders whose 202 arrived, and they go on at the next start."""
    system = build(SHUTDOWN_GRACE_S=str(GRACE_SECONDS), NATS_ACK_WAIT_S="4").start()
    client = connect(system)
    await client.stock("SKU-1", 100_000)
    accepted: set[str] = set()
    refused: list[int] = []
    is_warm = asyncio.Event()

    async def buy() -> None:
        while True:
            try:
                reply = await client.post({"SKU-1": 1})
            except LOST:
                return
            if reply.status != 202:
                refused.append(reply.status)
                return
            accepted.add(reply.body["order_id"])
            if len(accepted) >= 200:
                is_warm.set()

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(buy())
        await is_warm.wait()
        if not is_nats_there:
            await asyncio.to_thread(broker.kill)
        began = time.monotonic()
        for server in system:
            server.send(signal.SIGTERM)
    codes = [await asyncio.to_thread(server.wait, GRACE_SECONDS + 2) for server in system]
    seconds = time.monotonic() - began
    print(f"all had left after {seconds:.1f} s")
    assert codes == [0, 0, 0]
    assert seconds < GRACE_SECONDS
    assert set(refused) <= {503}

    if not is_nats_there:
        await asyncio.to_thread(broker.start)
    await asyncio.to_thread(system.start)
    orders = await look_at_the_whole(client, system, broker, accepted, {"SKU-1": 100_000})
    assert {order["status"] for order in orders} == {"confirmed"}
    assert system.stderr == ""


async def test_a_part_that_never_met_nats_leaves_at_once(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """A first connection that is still tried for does not hold anybody up."""
    broker.stop()
    system = build().start()
    began = time.monotonic()
    for server in system:
        server.send(signal.SIGTERM)
    assert [await asyncio.to_thread(server.wait) for server in system] == [0, 0, 0]
    assert time.monotonic() - began < 15.0
    assert system.stderr == ""
