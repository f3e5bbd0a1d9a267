"""SIGTERM: a process finishes its work, with NATS or without, and loses nothing."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import pytest

from tests.nats import NatsServer
from tests.process.client import RESPONSE_LOST, Client
from tests.split.conftest import Build
from tests.split.invariants import check_system
from tests.split.system import System

GRACE_SECONDS = 30.0


@pytest.mark.slow
@pytest.mark.parametrize("has_nats", [True, pytest.param(False, marks=pytest.mark.night)], ids=["with NATS", "without NATS"])
async def test_sigterm_under_load_ends_every_process_with_0(
    build: Build, broker: NatsServer, connect: Callable[[System], Client], has_nats: bool
) -> None:
    """All exit with 0 within the grace period; exactly the orders whose 202 arrived exist and continue after a restart."""
    system = build(SHUTDOWN_GRACE_S=str(GRACE_SECONDS), NATS_ACK_WAIT_S="4").start()
    client = connect(system)
    await client.stock("SKU-1", 100_000)
    accepted: set[str] = set()
    rejected: list[int] = []
    is_warm = asyncio.Event()

    async def buy() -> None:
        while True:
            try:
                reply = await client.post({"SKU-1": 1})
            except RESPONSE_LOST:
                return
            if reply.status != 202:
                rejected.append(reply.status)
                return
            accepted.add(reply.body["order_id"])
            if len(accepted) >= 200:
                is_warm.set()

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(buy())
        await is_warm.wait()
        if not has_nats:
            await asyncio.to_thread(broker.kill)
        began = time.monotonic()
        for server in system:
            server.send(signal.SIGTERM)
    codes = [await asyncio.to_thread(server.wait, GRACE_SECONDS + 2) for server in system]
    seconds = time.monotonic() - began
    print(f"all had ended after {seconds:.1f} s")
    assert codes == [0, 0, 0]
    assert seconds < GRACE_SECONDS
    assert set(rejected) <= {503}

    if not has_nats:
        await asyncio.to_thread(broker.start)
    await asyncio.to_thread(system.start)
    orders = await check_system(client, system, broker, accepted, {"SKU-1": 100_000})
    assert {order["status"] for order in orders} == {"confirmed"}
    assert system.stderr == ""


@pytest.mark.slow
async def test_a_process_that_never_reached_nats_ends_at_once(
    build: Build, broker: NatsServer, connect: Callable[[System], Client]
) -> None:
    """The attempts to connect do not delay the shutdown."""
    broker.stop()
    system = build().start()
    began = time.monotonic()
    for server in system:
        server.send(signal.SIGTERM)
    assert [await asyncio.to_thread(server.wait) for server in system] == [0, 0, 0]
    assert time.monotonic() - began < 25.0
    assert system.stderr == ""
