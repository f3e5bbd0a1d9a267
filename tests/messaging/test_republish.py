"""A lost stream, published again from the outbox: everything is there again, and nothing happens twice."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import sqlite3
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import nats
import pytest
from click.testing import CliRunner, Result
from nats.js import JetStreamContext
from uuid_utils import uuid7

from app.cli.main import main
from app.messaging.cloudevents import to_message
from app.messaging.republish import PAGE, PublishStalled, count, republish
from bus.errors import PublishRetryable
from bus.jetstream.bus import JetStreamBus, Servers
from bus.port import Message, Subscription
from modules.inventory.state import Product
from modules.orders.events import OrderCreated
from modules.values import Line
from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.runtime.harness import Harness, bus_message, harness_at, oid, product, submitted, until

NOW = datetime.now(UTC)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def environ(path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> NatsServer:
    """An environment that names a server with nothing on it, and a database with nothing in it."""
    monkeypatch.setenv("BUS", "nats")
    monkeypatch.setenv("NATS_URL", server.url)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")

    async def migrated() -> None:
        async with harness_at(path):
            pass

    asyncio.run(migrated())
    return server


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["republish", *arguments])


def at(server: NatsServer, work: Callable[[JetStreamContext], Any]) -> Any:
    """Do *work* at the server."""

    async def there() -> Any:
        client = await nats.connect(server.url)
        try:
            return await work(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(there())


def keep(
    path: Path, module: str, count: int, *, age: timedelta = timedelta(0), sent: timedelta | None = None, is_sent: bool = True
) -> list[str]:
    """Put events into an outbox that happened *age* ago and were *sent* so long ago, or at once; return their ids."""
    at = (NOW - age).isoformat(timespec="microseconds")
    sent_at = (NOW - (age if sent is None else sent)).isoformat(timespec="microseconds")
    ids = [str(uuid7()) for _ in range(count)]
    connection = sqlite3.connect(path)
    with connection:
        connection.executemany(
            f"INSERT INTO {module}_outbox (id, event_id, subject, key, body, correlation_id, causation_id, traceparent,"
            f" occurred_at, due_at, sent_at) VALUES (?, ?, '{module}.created.v1', 'k', X'7b7d', 'c', 'c', '', ?, ?, ?)",
            [(id, id, at, at, sent_at if is_sent else None) for id in ids],
        )
    connection.close()
    return ids


def messages(server: NatsServer, stream: str) -> int:
    async def there(js: JetStreamContext) -> int:
        return (await js.stream_info(stream)).state.messages

    return int(at(server, there))


def test_what_a_lost_stream_held_is_there_again(environ: NatsServer, path: Path) -> None:
    """Founded anew, with every id once, over many pages; a second time changes nothing."""
    ids = keep(path, "orders", 2 * PAGE + 7)
    result = run("--since", "1h")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"republished {len(ids)} events since ")
    assert messages(environ, "ORDERS") == len(ids)
    at(environ, lambda js: js.delete_stream("ORDERS"))
    for _ in range(2):
        assert run("--since", "1h").exit_code == 0
        assert messages(environ, "ORDERS") == len(ids)

    async def ids_there(js: JetStreamContext) -> set[str]:
        config = (await js.stream_info("ORDERS")).config
        assert (config.subjects, config.max_age) == (["orders.>"], 47 * 3600)
        found = [await js.get_msg("ORDERS", n) for n in (1, len(ids))]
        return {(message.headers or {})["Nats-Msg-Id"] for message in found}

    assert at(environ, ids_there) <= set(ids)


def test_only_what_was_sent_and_is_young_enough_goes_out(environ: NatsServer, path: Path) -> None:
    """What is not sent yet is the relay's; a module that is not named stays silent."""
    keep(path, "orders", 1, age=timedelta(hours=3))
    keep(path, "orders", 2, age=timedelta(minutes=30))
    keep(path, "orders", 4, is_sent=False)
    keep(path, "payments", 8)
    assert "(orders 2)" in run("--since", "1h", "--module", "orders").stdout
    assert messages(environ, "ORDERS") == 2
    since = (NOW - timedelta(hours=2)).astimezone().isoformat()
    result = run("--since", since)
    assert "republished 10 events" in result.stdout
    assert "(orders 2, inventory 0, payments 8)" in result.stdout
    assert messages(environ, "PAYMENTS") == 8
    assert "(orders 3, " in run("--since", "1d").stdout


def test_what_went_out_late_is_said_again_however_long_ago_it_happened(environ: NatsServer, path: Path) -> None:
    """A backlog, or what was said for later: the stream that was lost held it, and that is what counts."""
    minutes, hours = timedelta(minutes=30), timedelta(hours=3)
    late = keep(path, "orders", PAGE + 1, age=hours, sent=minutes)
    keep(path, "orders", 3, age=hours, sent=hours)
    at_once = keep(path, "orders", 2, age=minutes)
    assert f"(orders {len(late) + len(at_once)}, " in run("--since", "1h").stdout
    assert messages(environ, "ORDERS") == PAGE + 3


async def test_whoever_has_heard_an_event_hears_it_without_effect(path: Path, server: NatsServer) -> None:
    """The stream has forgotten the ids; the inbox has not."""
    async with harness_at(path) as harness:
        await harness.submit("inventory", product())
        letters = harness.dead_letter_store
        bus = JetStreamBus(harness.clock, letters, Servers(urls=server.urls))
        await bus.connect()
        runner = harness.runners["inventory"]
        harness.run(runner.consume(await bus.subscribe("inventory", ["orders.created.v2"])))
        harness.run(runner.run())
        event = OrderCreated(order_id=oid(1), customer_id="c-1", items=(Line("A", 2),), version="v2", shipping_address=None)
        message = bus_message(harness, event, id=oid(7), key=oid(1))
        await _keep_sent(harness, message)
        client = await nats.connect(server.url)
        for round in range(3):
            sent: list[int] = []
            store = harness.stores["orders"]
            assert await republish(store, bus, harness.clock, NOW - timedelta(hours=1), on_sent=sent.append) == 1
            assert sent == [1]
            outcomes = {"handled": 1, "repeated": round} if round else {"handled": 1}
            await until(partial(_has_come_to, harness, outcomes))
            state = await runner.get(Product, "A")
            assert state is not None
            assert state.reserved == 2
            await client.jetstream().delete_stream("ORDERS")
        await client.close()
        await harness.stop()
        await bus.close(0)


async def test_an_event_is_sent_until_the_bus_has_it(path: Path) -> None:
    """Many at once, but not all; with a bus that takes nothing for too long, it ends."""
    async with harness_at(path) as harness:
        keep(path, "orders", 3 * PAGE)
        bus = _Moody(2)
        store, since = harness.stores["orders"], NOW - timedelta(hours=1)
        assert await republish(store, bus, harness.clock, since, on_sent=lambda _: None) == 3 * PAGE
        assert len(bus.taken) == len(set(bus.taken)) == 3 * PAGE
        with pytest.raises(PublishStalled, match="nothing was taken for 0 s"):
            await republish(store, _Moody(10**9), harness.clock, since, on_sent=lambda _: None, patience_seconds=0)


async def test_postgresql_says_the_same_again(postgres: PostgresServer) -> None:
    """To the byte what was said the first time, and as much of it as SQLite would."""
    bus = _Moody(0)
    async with harness_at(postgres.make()) as harness:
        await harness.submit("orders", submitted(oid(1)))
        await harness.submit("orders", submitted(oid(2)))
        now = harness.clock.now()
        store = harness.stores["orders"]
        outbox_messages = await store.database.read(lambda connection: store.fetch_due(connection, now, 10, timedelta(0)))
        first, second = sorted(outbox_message for outbox_message in outbox_messages if outbox_message.subject == "orders.created.v1")
        await store.database.write(lambda connection: store.mark_sent(connection, [first.id], now))
        await republish(store, bus, harness.clock, now - timedelta(hours=1), on_sent=lambda _: None)
        assert bus.said == [to_message(first)]
        assert dict(bus.said[0].headers) == dict(to_message(first).headers)
        assert await count(store, now - timedelta(hours=1)) == 1
        assert await count(store, now + timedelta(seconds=1)) == 0
        later = now + timedelta(minutes=1)
        await store.database.write(lambda connection: store.mark_sent(connection, [second.id], later))
        assert [await count(store, since) for since in (now, later, later + timedelta(microseconds=1))] == [2, 1, 0]


def test_it_needs_nats(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bus in memory has nothing to lose: exit code 2, one line."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")
    result = run("--since", "1h")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "fulfilment: BUS: must be nats; a bus in memory has no streams to lose\n"
    assert not path.exists()


def test_nats_out_of_reach_ends_with_3_in_one_line(environ: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """At start; nothing was said."""
    environ.stop()
    result = run("--since", "1h")
    assert (result.exit_code, result.stdout) == (3, "")
    assert len(result.stderr.splitlines()) == 1


def test_a_module_that_is_not_run_here_is_a_mistake_of_usage(environ: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outbox is somewhere else."""
    monkeypatch.setenv("MODULES", "orders")
    assert run("--since", "1h", "--module", "payments").exit_code == 2


def test_a_terminal_is_shown_a_bar(environ: NatsServer, path: Path) -> None:
    """On stderr; whoever reads stdout gets the one line."""
    keep(path, "orders", 20)
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 100))
    done = subprocess.run(
        [sys.executable, "-m", "app", "republish", "--since", "1h"],
        stdout=subprocess.PIPE, stderr=follower, env=dict(os.environ), check=True, timeout=60,
    )  # fmt: skip
    os.close(follower)
    shown = os.read(leader, 65536).decode()
    os.close(leader)
    assert "republish: 100%" in shown
    assert "20/20" in shown
    assert len(done.stdout.splitlines()) == 1


class _Moody:
    """A bus that takes each message only when it is asked for the *refusals* + 1-th time."""

    is_connected = True
    problems = ()

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.asked: dict[str, int] = {}
        self.taken: list[str] = []
        self.said: list[Message] = []

    def publish(self, message: Message) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked[message.id] = self.asked.get(message.id, 0) + 1
        if self.asked[message.id] <= self.refusals:
            future.set_exception(PublishRetryable("not now"))
        else:
            self.said.append(message)
            self.taken.append(message.id)
            future.set_result(None)
        return future

    async def subscribe(self, consumer: str, subjects: Sequence[str]) -> Subscription:
        raise NotImplementedError

    async def close(self, grace_seconds: float = 5.0) -> None:
        raise NotImplementedError


async def _keep_sent(harness: Harness, message: Message) -> None:
    at = harness.clock.now().isoformat(timespec="microseconds")
    values = (message.id, message.id, message.subject, message.key, message.body, at, at, at)
    await harness.database.write(
        lambda connection: connection.exec_driver_sql(
            "INSERT INTO orders_outbox (id, event_id, subject, key, body, correlation_id, causation_id, traceparent,"
            " occurred_at, due_at, sent_at) VALUES (?, ?, ?, ?, ?, 'c', 'c', '', ?, ?, ?)",
            values,
        )
    )


def _has_come_to(harness: Harness, outcomes: dict[str, int]) -> bool:
    return _outcomes(harness) == outcomes


def _outcomes(harness: Harness) -> dict[str, int]:
    """Return how often inventory has come to each outcome, as its metrics say."""
    found = re.findall(r'messages_handled_total\{(.*)\} (.*)', harness.metrics.render().decode())
    return {re.findall('outcome="(.*?)"', labels)[0]: int(float(count)) for labels, count in found}
