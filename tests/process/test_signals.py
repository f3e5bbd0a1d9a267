"""Signals: the first one shuts the server down, the second one ends it at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.process.client import RESPONSE_LOST, Client
from tests.process.conftest import Serve
from tests.process.invariants import check_invariants
from tests.process.server import Server, environment_of
from tests.signals import pause_process

pytestmark = pytest.mark.slow

GRACE_SECONDS = 30.0


@pytest.mark.parametrize("workers", ["0", "2"])
async def test_sigterm_under_load_exits_with_0_and_answers_every_accepted_request(
    workers: str, serve: Serve, connect: Callable[[Server], Client]
) -> None:
    """
    After the restart there are exactly the orders whose 202 arrived.

    Requests that are sent later may find a closed connection.
    """
    server = serve(SHUTDOWN_GRACE_S=str(GRACE_SECONDS), HTTP_WORKERS=workers)
    client = connect(server)
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
            if reply.status == 202:
                accepted.add(reply.body["order_id"])
            else:
                rejected.append(reply.status)
                return
            if len(accepted) >= 300:
                is_warm.set()

    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(buy())
        await is_warm.wait()
        began = time.monotonic()
        server.send(signal.SIGTERM)
    assert await asyncio.to_thread(server.wait, GRACE_SECONDS + 1) == 0
    assert time.monotonic() - began < GRACE_SECONDS
    assert set(rejected) <= {503}

    await asyncio.to_thread(server.start)
    orders = await check_invariants(client, accepted, {"SKU-1": 100_000}, lost_responses_max=0)
    assert {order["status"] for order in orders} == {"confirmed"}
    assert server.stderr == ""


async def test_a_second_signal_ends_the_server_at_once(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """It does not wait for a slow payment provider, and loses nothing."""
    server = serve(SIMULATED_LATENCY_MS="60000", SHUTDOWN_GRACE_S="60")
    client = connect(server)
    await client.stock("SKU-1", 10)
    order_id = await client.place({"SKU-1": 1})
    async for order in client.stream(order_id):
        if order["status"] == "reserved":
            break
    server.send(signal.SIGTERM)
    await asyncio.to_thread(server.wait_for_line, lambda line: '"stopping"' in line)
    began = time.monotonic()
    server.send(signal.SIGTERM)
    code = await asyncio.to_thread(server.wait)
    assert time.monotonic() - began < 20.0
    assert code == 128 + signal.SIGTERM

    server.settings["SIMULATED_LATENCY_MS"] = "0"
    await asyncio.to_thread(server.start)
    assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    await check_invariants(client, [order_id], {"SKU-1": 10})


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
async def test_an_idle_server_ends_at_once(serve: Serve, number: signal.Signals) -> None:
    """It has no work to finish."""
    server = serve(SHUTDOWN_GRACE_S="60")
    began = time.monotonic()
    server.send(number)
    assert await asyncio.to_thread(server.wait) == 0
    assert time.monotonic() - began < 20.0
    assert server.stderr == ""


async def test_an_open_stream_does_not_delay_the_shutdown(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """The stream ends when the server shuts down; the server does not wait for its client."""
    server = serve(SIMULATED_LATENCY_MS="1000", SHUTDOWN_GRACE_S="80")  # a quarter of it is for open connections
    client = connect(server)
    await client.stock("SKU-1", 10)
    order_id = await client.place({"SKU-1": 1})
    seen = []
    began = 0.0
    async for order in client.stream(order_id):
        seen.append(order["status"])
        if order["status"] == "reserved" and not began:
            began = time.monotonic()
            server.send(signal.SIGTERM)
    assert await asyncio.to_thread(server.wait) == 0
    assert time.monotonic() - began < 15.0
    assert seen[-1] in ("reserved", "confirmed")
    await asyncio.to_thread(server.start)
    assert (await client.wait_until_final(order_id))["status"] == "confirmed"


async def test_a_paused_process_continues(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """After SIGSTOP and SIGCONT the waiting requests are answered."""
    server = serve()
    client = connect(server)
    await client.stock("SKU-1", 10)
    pause_process(server.pid)
    posts = [asyncio.create_task(client.place({"SKU-1": 1})) for _ in range(10)]
    done, _ = await asyncio.wait(posts, timeout=0.3)
    assert not done
    server.send(signal.SIGCONT)
    order_ids = await asyncio.gather(*posts)
    for order_id in order_ids:
        assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    await check_invariants(client, order_ids, {"SKU-1": 10})


def child_of(pid: int) -> int:
    """Return the only child of the process *pid*, once it has one."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not (found := children.read_text().split()):
        time.sleep(0.001)
    return int(found[0])


def in_a_container(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start Python with *arguments* as the first process of a process namespace."""
    return subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-u", *arguments],
        cwd=folder,
        env=environment_of({"HTTP_PORT": "0"}),
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_sigterm_ends_the_first_process_of_a_container_while_it_waits_for_the_file(serve: Serve) -> None:
    """Another process serves the file, as while a container is replaced; the wait ends with the signal."""
    server = serve()
    waiting = in_a_container(server.folder, "-m", "app", "serve")
    assert waiting.stdout is not None
    for line in waiting.stdout:
        if "waiting for it to end" in line:
            break
    began = time.monotonic()
    os.kill(child_of(waiting.pid), signal.SIGTERM)
    waiting.communicate(timeout=30)
    assert waiting.returncode == 0
    assert time.monotonic() - began < 15.0


def test_sigterm_ends_the_first_process_of_a_container_while_it_starts(tmp_path: Path) -> None:
    """The kernel drops a signal to such a process if there is no handler yet, and the orchestrator would wait and kill."""
    code = """
        import os, runpy, signal, sys

        class SignalWhileImporting:
            def find_spec(self, name, path=None, target=None):
                if name == "click":
                    os.kill(1, signal.SIGTERM)

        assert os.getpid() == 1
        sys.meta_path.insert(0, SignalWhileImporting())
        runpy.run_module("app", run_name="__main__", alter_sys=True)
    """
    process = in_a_container(tmp_path, "-c", textwrap.dedent(code), "version")
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + signal.SIGTERM, "")


class Caller:
    """A client with a kept-alive connection, which counts the requests that a server has read and not answered."""

    def __init__(self, server: Server) -> None:
        self.host, port = server.url.removeprefix("http://").split(":")
        self.port = int(port)
        self.answered = 0
        self.reset = 0

    async def call_until_refused(self) -> None:
        """Send one request after the other; connect again when the server asks for it, until it no longer listens."""
        while True:
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port)
            except ConnectionError:
                return
            try:
                while await self._call(reader, writer):
                    pass
            except (ConnectionError, asyncio.IncompleteReadError):
                self.reset += 1
            finally:
                writer.close()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"GET /v1/inventory HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        self.answered += 1
        return b"connection: close" not in head


async def test_no_request_of_a_kept_alive_connection_is_lost_at_a_stop(serve: Serve) -> None:
    """Every answer asks the client to connect elsewhere, and the listener closes without resetting who waits in its queue."""
    server = serve()
    callers = [Caller(server) for _ in range(16)]
    calling = [asyncio.create_task(caller.call_until_refused()) for caller in callers]
    while min(caller.answered for caller in callers) < 5:  # noqa: ASYNC110 - the callers set no event
        await asyncio.sleep(0.01)
    server.send(signal.SIGTERM)
    async with asyncio.timeout(30):
        await asyncio.gather(*calling)
    assert await asyncio.to_thread(server.wait) == 0
    assert sum(caller.reset for caller in callers) == 0


async def test_readiness_is_503_for_the_delay_while_requests_are_still_taken(
    serve: Serve, connect: Callable[[Server], Client]
) -> None:
    """A load balancer sees it and sends its next requests elsewhere, before any of them finds a closed port."""
    server = serve(SHUTDOWN_DELAY_S="2")
    client = connect(server)
    await client.stock("SKU-1", 10)
    assert (await client.get("/readyz"))["status"] == "ready"
    began = time.monotonic()
    server.send(signal.SIGTERM)
    await asyncio.to_thread(server.wait_for_line, lambda line: '"stopping"' in line)
    ready = await client.request("GET", "/readyz")
    assert (ready.status, ready.headers["Connection"]) == (503, "close")
    placed = await client.post({"SKU-1": 1})
    assert (placed.status, placed.headers["Connection"]) == (202, "close")
    assert (await client.get("/livez")) is not None
    assert await asyncio.to_thread(server.wait) == 0
    assert 2.0 <= time.monotonic() - began < 12.0
