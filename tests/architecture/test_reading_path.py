"""
How many files a reader opens to follow one request or one message: those whose functions run, and no others.

A file that only builds parts when the process starts is not on the path. Work that the process does in any case, such as the
scan of an outbox, runs beside some of the requests only: a path is what several runs have in common.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import nats
import orjson
import pytest
from nats.aio.client import Client
from sqlalchemy import Engine, event
from uuid_utils import uuid7

from app.application import Application
from config.settings import Settings
from modules.registry import MODULES
from tests.architecture.tree import PACKAGES, ROOT
from tests.nats import NatsServer

FILES_MAX = 30
RUNS = 12

Call = tuple[str, str]
"""A file below the project's folder and a function in it."""

COMMIT: Call = ("", "COMMIT")
TO_COMMIT: tuple[Call, ...] = (("app/web/server.py", "handle"), ("modules/orders/decide.py", "_accepted"), COMMIT)
TO_ACK: tuple[Call, ...] = (("bus/jetstream/pull_consumer.py", "_on_message"), ("bus/jetstream/delivery.py", "confirm"))
PREFIXES = tuple(f"{ROOT / package}/" for package in PACKAGES)


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """Record every call of a function of the project on this thread, and every commit."""
    calls: list[Call] = []

    def record(frame: FrameType, what: str, argument: Any) -> None:
        if what == "call" and frame.f_code.co_filename.startswith(PREFIXES):
            calls.append((frame.f_code.co_filename.removeprefix(f"{ROOT}/"), frame.f_code.co_name))

    def on_commit(connection: Any) -> None:
        calls.append(COMMIT)

    event.listen(Engine, "commit", on_commit)
    before = sys.getprofile()
    sys.setprofile(record)
    try:
        yield calls
    finally:
        sys.setprofile(before)
        event.remove(Engine, "commit", on_commit)


async def path_of(run: Callable[[int], Awaitable[None]], *marks: Call) -> list[str]:
    """Return the files that *run* needs from the first of *marks* to the last, in the order in which they are reached."""
    found: list[list[str]] = []
    for number in range(RUNS):
        with recorded() as calls:
            await run(number)
        begin = at = calls.index(marks[0])
        for mark in marks[1:]:
            at = calls.index(mark, at)
        found.append([file for file, _ in calls[begin:at]])
    common = set.intersection(*map(set, found))
    return [file for file in dict.fromkeys(found[-1]) if file in common and file]


@asynccontextmanager
async def running(folder: Path, **given: Any) -> AsyncIterator[int]:
    """Run a process with a database in *folder*; yield its port."""
    url = f"sqlite:///{folder}/test.db"
    application = Application(Settings(known_modules=MODULES, database_url=url, http_port=0, shutdown_grace_s=0.5, **given))
    address = await application.start()
    try:
        yield int(address.rpartition(":")[2])
    finally:
        await application.stop()


async def send(port: int, method: str, path: str, value: Any = None) -> tuple[str, str]:
    """Send *value* as JSON; return the status line and the body. The client must not be one that uses the project."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = "" if value is None else json.dumps(value)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer.partition("\r\n")[0], answer.partition("\r\n\r\n")[2]


async def stock(port: int) -> None:
    product = {"on_hand": 1000, "unit_price": {"amount": 1250, "currency": "EUR"}}
    assert "200" in (await send(port, "PUT", "/v1/inventory/teapot", product))[0]


def order(port: int, *, is_awaited: bool) -> Callable[[int], Awaitable[None]]:
    """Return what places an order and, if *is_awaited*, returns once it is confirmed: its rest is no part of the next run."""

    async def place(number: int) -> None:
        items = [{"product_id": "teapot", "quantity": 1}]
        status, body = await send(port, "POST", "/v1/orders", {"customer_id": "ada", "items": items})
        assert "202" in status
        path = f"/v1/orders/{json.loads(body)['order_id']}"
        async with asyncio.timeout(30):
            while is_awaited and json.loads((await send(port, "GET", path))[1])["status"] != "confirmed":
                pass

    return place


async def wait_for_durable(client: Client) -> None:
    """Return once inventory can receive: it creates streams and durables while it starts."""
    async with asyncio.timeout(30):
        while True:
            with suppress(nats.errors.Error):
                await client.jetstream().consumer_info("ORDERS", "inventory")
                return
            await asyncio.sleep(0.01)


async def test_an_order_in_one_process_is_followed_to_the_commit_through_few_files(tmp_path: Path) -> None:
    """Three modules decide within the transaction, so the decisions of all three are on the path."""
    async with running(tmp_path) as port:
        await stock(port)
        path = await path_of(order(port, is_awaited=True), *TO_COMMIT)
    assert {f"modules/{name}/decide.py" for name in ("orders", "inventory", "payments")} <= set(path)
    assert len(path) <= FILES_MAX, path


async def test_an_order_with_a_bus_is_followed_to_the_commit_through_few_files(tmp_path: Path) -> None:
    """Only one module decides; what it emits goes to the outbox."""
    with NatsServer(tmp_path / "nats") as server:
        async with running(tmp_path, bus="nats", nats_url=server.url, modules=("orders",)) as port:
            path = await path_of(order(port, is_awaited=False), *TO_COMMIT)
    assert "modules/inventory/decide.py" not in path
    assert len(path) <= FILES_MAX, path


@pytest.mark.slow
async def test_a_delivery_is_followed_to_its_acknowledgement_through_few_files(tmp_path: Path) -> None:
    """From the broker's message to the ack: decoding, the decision, the commit, and the publishing of what follows."""
    schema = json.loads((ROOT / "modules/orders/schemas/orders.created.v2.json").read_text(encoding="utf-8"))
    body = schema["examples"][0] | {"items": [{"product_id": "teapot", "quantity": 1}]}
    with NatsServer(tmp_path / "nats") as server:
        async with running(tmp_path, bus="nats", nats_url=server.url, modules=("inventory",)) as port:
            await stock(port)
            client = await nats.connect(server.url)
            await wait_for_durable(client)

            async def deliver(number: int) -> None:
                order = body | {"order_id": str(uuid7())}  # placed now: an old one would be looked up in the archive
                stored = await client.jetstream().publish("orders.created.v2", orjson.dumps(order))
                async with asyncio.timeout(30):
                    while await acknowledged_up_to(client) < stored.seq:
                        pass

            path = await path_of(deliver, *TO_ACK)
            await client.close()
    assert "modules/inventory/decide.py" in path
    assert len(path) <= FILES_MAX, path


async def acknowledged_up_to(client: Client) -> int:
    """Return the sequence number in the stream up to which the module has acknowledged every message of its own."""
    found = await client.jetstream().consumer_info("ORDERS", "inventory")
    return 0 if found.ack_floor is None else found.ack_floor.stream_seq
