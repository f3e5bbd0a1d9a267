"""
Run a deployment in this process, without sockets, threads and a real clock, and count what orders cost.

The requests are bytes that aiohttp's connections get directly, a commit runs at once in the same thread, and the clock
stands still: so the same work is done each time. What runs at intervals only (the scan of the outbox, the purge, the flush
of marks without another transaction) is left out: its costs do not depend on the number of orders.
"""

from __future__ import annotations

__all__ = ["BATCHES", "DEPLOYMENTS", "Counts", "count_orders", "message_bytes"]

import asyncio
import gc
import io
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from loguru import logger
from sqlalchemy import Pool, event

from app.application import Application
from app.bootstrap import build_web
from app.messaging.consumers import subscriptions
from app.storage.sql.database import LoopExecutor
from app.telemetry import logs
from app.web.access.gate import build_gate
from bus.jetstream.delivery import headers_of
from bus.port import Message
from config.environment import load
from modules.registry import MODULES
from tests.budget.counters import CallCounter, SqliteCounter
from tests.budget.postgres_counter import PostgresCounter
from tests.clock import VirtualClock

DEPLOYMENTS: Mapping[str, Callable[[Path, str], Mapping[str, str]]] = {
    "one-process-sqlite": lambda folder, _: {"DATABASE_URL": f"sqlite:///{folder}/one.db"},
    "three-modules-sqlite": lambda folder, _: {
        f"{name.upper()}_DATABASE_URL": f"sqlite:///{folder}/{name}.db" for name in MODULES
    },
    "one-process-postgres": lambda _, url: {"DATABASE_URL": url},
    "three-modules-retired": lambda folder, _: {
        **{f"{name.upper()}_DATABASE_URL": f"sqlite:///{folder}/retired-{name}.db" for name in MODULES},
        "RETIRED_VERSIONS": "orders.created.v1",
    },
}
"""The settings of each deployment, from a folder and the URL of an empty PostgreSQL database."""

BATCHES = (32, 1)
"""How many orders arrive at once. A module takes fewer at once after a smaller batch, so the largest comes first."""

ROUNDS = {32: 2, 1: 8}
"""Rounds that are counted for each batch: the pages that SQLite writes differ from one to the next."""

WARM_UP_ROUNDS = 2
"""Rounds before them, after which everything that is done once is done."""

SAMPLERS = ("app.web.console.samples", "app.web.operations.overview.overview")
"""They read the counters at intervals of real time; a sample would fall into a count or not."""

Counts = dict[str, float]
"""What one order costs, by what is counted."""

_BODY = b'{"customer_id":"c-1","items":[{"product_id":"SKU-1","quantity":2}]}'
_POST = (
    b"POST /v1/orders HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)
_PRODUCT = b'{"on_hand":100000000,"unit_price":{"amount":1250,"currency":"EUR"}}'
_PUT = (
    b"PUT /v1/inventory/SKU-1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_PRODUCT), _PRODUCT)
)


def count_orders(deployments: Sequence[str], postgres_url: str = "") -> dict[str, dict[int, Counts]]:
    """Return what an order costs in each of *deployments* for each of `BATCHES`; call it once in a process."""
    counts: Counter[str] = Counter()
    sqlite, postgres = SqliteCounter(counts), PostgresCounter(counts)
    sqlite.install()

    def attach(connection: Any, record: Any) -> None:
        (postgres if hasattr(connection, "pgconn") else sqlite).attach(connection)

    event.listen(Pool, "connect", attach)
    found = {}
    for deployment in deployments:
        # The files that the deployment makes count as new for a second; the log formats the time of each second once.
        time_ns = time.time_ns() + 60_000_000_000
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(patch("time.time_ns", lambda time_ns=time_ns: time_ns))
            for name in SAMPLERS:
                stack.enter_context(patch(f"{name}.INTERVAL_SECONDS", 3600.0))
            system = _System(DEPLOYMENTS[deployment](Path(folder), postgres_url), counts)
            found[deployment] = asyncio.run(_count_orders(system, counts, sqlite, postgres))
    return found


async def _count_orders(
    system: _System, counts: Counter[str], sqlite: SqliteCounter, postgres: PostgresCounter
) -> dict[int, Counts]:
    found = {}
    logs.setup("WARNING", "json", stream=io.StringIO())
    async with asyncio.timeout(300):
        await system.start()
        system.age_folders()
        for batch in BATCHES:
            for _ in range(WARM_UP_ROUNDS):
                await system.place(batch)
            counts.clear()
            log = io.StringIO()
            logs.setup("INFO", "json", stream=log)
            gc.collect()
            gc.disable()
            written = sqlite.total_changes()
            with postgres.counting(), CallCounter(counts).counting():
                for _ in range(ROUNDS[batch]):
                    await system.place(batch)
            gc.enable()
            counts["rows_written"] += sqlite.total_changes() - written
            logger.remove()  # waits for the thread that writes
            counts["log_lines"] = log.getvalue().count("\n")
            found[batch] = {name: round(count / batch / ROUNDS[batch], 3) for name, count in sorted(counts.items())}
        await system.stop()
    return found


class _System:
    """The modules of *settings* in this process, on a clock that stands still."""

    def __init__(self, settings: Mapping[str, str], counts: Counter[str]) -> None:
        self._counts = counts
        self._clock = VirtualClock(datetime.now(UTC))  # ids begin with the time of the machine's clock
        self._application = Application(load(settings, MODULES), self._clock)
        self._parts = self._application.parts
        self._tasks: list[asyncio.Task[None]] = []
        self._connections: list[tuple[Any, _Transport]] = []
        for database in self._parts.storage.databases.values():
            _without_threads(database)
        _count_messages(self._parts.bus.bus, counts)

    async def start(self) -> None:
        """Create the tables, start the consumers and runners, and set the stock."""
        parts = self._parts
        parts.storage.migrate()
        consumers = parts.consumers()
        for consumer, subjects in subscriptions(parts.modules, parts.contracts).items():
            subscription = await parts.bus.bus.subscribe(consumer, subjects)
            self._tasks.append(asyncio.create_task(consumers[consumer](subscription)))
        self._tasks += [asyncio.create_task(runner.run()) for runner in parts.runtime.runners.values()]
        self._web = build_web(parts, self._application, build_gate(parts.settings))
        await self._web.setup()
        self._application.phase = "ready"
        answers = await self._send([_PUT])
        assert answers[0].startswith(b"HTTP/1.1 200"), answers

    def age_folders(self) -> None:
        """Let no folder of a SQLite file look changed: within a second of a change the file is verified at each transaction."""
        for database in self._parts.storage.databases.values():
            if (path := database.dialect.wal_path) is not None:
                os.utime(os.path.dirname(path), (0, 0))

    async def place(self, count: int) -> None:
        """Place *count* orders at once; return when all are confirmed and the relays know what was sent."""
        confirmed = self._confirmed()
        answers = await self._send([_POST] * count)
        assert all(answer.startswith(b"HTTP/1.1 202") for answer in answers), answers
        assert self._confirmed() == confirmed + count, "the orders are not confirmed"
        self._counts["http_bytes"] += count * len(_POST) + sum(map(len, answers))
        for relay in self._parts.runtime.relays.values():
            await relay.step()  # its marks join the transaction of the next orders

    async def stop(self) -> None:
        """Close the connections."""
        for task in self._tasks:
            task.cancel()
        await self._web.cleanup()
        await self._parts.bus.bus.close(0)
        await self._parts.storage.close()

    async def _send(self, requests: list[bytes]) -> list[bytes]:
        """Send each of *requests* on a connection of its own; return the answers once nothing more happens."""
        assert self._web.server is not None
        while len(self._connections) < len(requests):
            protocol: Any = self._web.server()
            transport = _Transport()
            protocol.connection_made(transport)
            self._connections.append((protocol, transport))
        used = self._connections[: len(requests)]
        for (protocol, _), request in zip(used, requests, strict=True):
            protocol.data_received(request)
        await self._clock.settle()
        return [transport.take() for _, transport in used]

    def _confirmed(self) -> float:
        return float(self._parts.metrics.orders.labels("confirmed").value)


class _Transport(asyncio.Transport):
    """A connection's transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 40000), "sockname": ("127.0.0.1", 8080)})
        self._written = bytearray()

    def write(self, data: Any) -> None:
        self._written += data

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken, self._written = bytes(self._written), bytearray()
        return taken

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """Do nothing: all that comes is sent at once."""

    def resume_reading(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: there is no socket."""


class _ImmediateExecutor(Executor):
    """Runs each job at once, in the thread that submits it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _without_threads(database: Any) -> None:
    """Let *database* run everything on the event loop; its private parts are the only way there."""
    database._writer = LoopExecutor(database._writer._transactor)
    database._reader = LoopExecutor(database._reader._transactor)
    database._writer._committer = database._reader._committer = _ImmediateExecutor()


def _count_messages(bus: Any, counts: Counter[str]) -> None:
    """Count the messages that are published on *bus*, and their size on NATS: subject, headers and body."""
    publish = bus.publish

    def counted(message: Message) -> asyncio.Future[None]:
        counts["messages"] += 1
        counts["message_bytes"] += message_bytes(message)
        future: asyncio.Future[None] = publish(message)
        return future

    bus.publish = counted


def message_bytes(message: Message) -> int:
    """Return the bytes of the subject, the header block and the body of *message* on NATS (its ADR-4)."""
    lines = sum(len(f"{name}: {value}\r\n".encode()) for name, value in headers_of(message).items())
    return len(message.subject) + len(b"NATS/1.0\r\n\r\n") + lines + len(message.body)
