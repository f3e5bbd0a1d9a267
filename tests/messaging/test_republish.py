"""`republish`: the events of a lost stream are published again from the outbox, and none takes effect twice."""

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
from app.clock import SystemClock
from app.messaging.cloudevents import to_message
from app.messaging.republish import PAGE, PublishStalled, count, republish
from bus.errors import PublishRetryable
from bus.jetstream.bus import JetStreamBus, Servers
from bus.port import Message, Subscription
from modules.inventory.state import Product
from modules.orders.events import OrderCreated
from modules.values import Line
from tests.databases import migrated_url
from tests.nats import NatsServer
from tests.postgres import PostgresServer
from tests.runtime.harness import Harness, bus_message, harness_at, oid, product, submitted, until

NOW = datetime.now(UTC)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def configured_server(path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> NatsServer:
    """An empty NATS server and an empty database, named by the environment variables."""
    monkeypatch.setenv("BUS", "nats")
    monkeypatch.setenv("NATS_URL", server.url)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")

    async def migrate() -> None:
        async with harness_at(path):
            pass

    asyncio.run(migrate())
    return server


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["republish", *arguments])


def at(server: NatsServer, work: Callable[[JetStreamContext], Any]) -> Any:
    """Run *work* with a JetStream context of *server*."""

    async def call() -> Any:
        client = await nats.connect(server.url)
        try:
            return await work(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(call())


def insert(
    path: Path, module: str, count: int, *, age: timedelta = timedelta(0), sent: timedelta | None = None, is_sent: bool = True
) -> list[str]:
    """
    Insert *count* events into the outbox of *module*; return their ids.

    They occurred *age* ago and were sent *sent* ago, by default when they occurred; without *is_sent* they are pending.
    """
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
    async def read(js: JetStreamContext) -> int:
        return (await js.stream_info(stream)).state.messages

    return int(at(server, read))


@pytest.mark.slow
def test_a_lost_stream_is_created_and_filled_again(configured_server: NatsServer, path: Path) -> None:
    """It has every id once, also over several pages; a second run changes nothing."""
    ids = insert(path, "orders", 2 * PAGE + 7)
    result = run("--since", "1h")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"republished {len(ids)} events since ")
    assert messages(configured_server, "ORDERS") == len(ids)
    at(configured_server, lambda js: js.delete_stream("ORDERS"))
    for _ in range(2):
        assert run("--since", "1h").exit_code == 0
        assert messages(configured_server, "ORDERS") == len(ids)

    async def stored_ids(js: JetStreamContext) -> set[str]:
        config = (await js.stream_info("ORDERS")).config
        assert (config.subjects, config.max_age) == (["orders.>"], 47 * 3600)
        found = [await js.get_msg("ORDERS", n) for n in (1, len(ids))]
        return {(message.headers or {})["Nats-Msg-Id"] for message in found}

    assert at(configured_server, stored_ids) <= set(ids)


def test_only_events_sent_since_the_given_time_are_published(configured_server: NatsServer, path: Path) -> None:
    """Pending events are left to the relay; with --module only that module is published."""
    insert(path, "orders", 1, age=timedelta(hours=3))
    insert(path, "orders", 2, age=timedelta(minutes=30))
    insert(path, "orders", 4, is_sent=False)
    insert(path, "payments", 8)
    assert "(orders 2)" in run("--since", "1h", "--module", "orders").stdout
    assert messages(configured_server, "ORDERS") == 2
    since = (NOW - timedelta(hours=2)).astimezone().isoformat()
    result = run("--since", since)
    assert "republished 10 events" in result.stdout
    assert "(orders 2, inventory 0, payments 8" in result.stdout
    assert messages(configured_server, "PAYMENTS") == 8
    assert "(orders 3, " in run("--since", "1d").stdout


def test_the_time_of_sending_counts_not_the_time_of_the_event(configured_server: NatsServer, path: Path) -> None:
    """An event that was scheduled, or waited in the outbox, was lost with the stream as well."""
    minutes, hours = timedelta(minutes=30), timedelta(hours=3)
    late = insert(path, "orders", PAGE + 1, age=hours, sent=minutes)
    insert(path, "orders", 3, age=hours, sent=hours)
    at_once = insert(path, "orders", 2, age=minutes)
    assert f"(orders {len(late) + len(at_once)}, " in run("--since", "1h").stdout
    assert messages(configured_server, "ORDERS") == PAGE + 3


async def test_a_consumer_that_has_processed_an_event_ignores_it(path: Path, server: NatsServer) -> None:
    """The new stream does not know the ids; the inbox does."""
    async with harness_at(path) as harness:
        await harness.submit("inventory", product())
        bus = JetStreamBus(harness.clock, harness.dead_letter_store, Servers(urls=server.urls))
        await bus.connect()
        runner = harness.runners["inventory"]
        harness.run(runner.consume(await bus.subscribe("inventory", ["orders.created.v2"])))
        harness.run(runner.run())
        event = OrderCreated(order_id=oid(1), customer_id="c-1", items=(Line("A", 2),), version="v2", shipping_address=None)
        message = bus_message(harness, event, id=oid(7), key=oid(1))
        await _insert_sent(harness, message)
        client = await nats.connect(server.url)
        for number in range(3):
            sent: list[int] = []
            store = harness.stores["orders"]
            assert await republish(store, bus, harness.clock, NOW - timedelta(hours=1), on_sent=sent.append) == 1
            assert sent == [1]
            outcomes = {"handled": 1, "repeated": number} if number else {"handled": 1}
            await until(partial(_has_outcomes, harness, outcomes))
            state = await runner.get(Product, "A")
            assert state is not None
            assert state.reserved == 2
            await client.jetstream().delete_stream("ORDERS")
        await client.close()
        await harness.stop()
        await bus.close(0)


async def test_an_event_is_published_until_the_bus_accepts_it(path: Path) -> None:
    """Many events are in flight at once; `PublishStalled` ends it when the bus accepts nothing for too long."""
    async with harness_at(path) as harness:
        insert(path, "orders", 3 * PAGE)
        bus = _RejectingBus(2)
        store, since = harness.stores["orders"], NOW - timedelta(hours=1)
        assert await republish(store, bus, harness.clock, since, on_sent=lambda _: None) == 3 * PAGE
        assert len(bus.accepted_ids) == len(set(bus.accepted_ids)) == 3 * PAGE
        with pytest.raises(PublishStalled, match="the bus accepted nothing for 0 s"):
            await republish(store, _RejectingBus(10**9), harness.clock, since, on_sent=lambda _: None, patience_seconds=0)


class CountedClock(SystemClock):
    """A clock whose time is the sum of what was slept; nothing waits for it."""

    slept = 0.0

    def monotonic(self) -> float:
        return self.slept

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds
        await asyncio.sleep(0)


async def test_a_bus_that_accepts_a_little_at_a_time_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes: the patience is that between two events. No more than the limit are in flight at once."""
    monkeypatch.setattr("app.messaging.republish.IN_FLIGHT_MAX", 3)
    clock, asked = CountedClock(), set[str]()

    class SlowBus(_RejectingBus):
        def publish(self, message: Message) -> asyncio.Future[None]:
            asked.add(message.id)
            assert len(asked) <= len(self.accepted_ids) + 3
            self.rejections = 0 if clock.slept >= 50 * (len(self.accepted_ids) + 1) else 10**9
            return super().publish(message)

    async with harness_at(path) as harness:
        insert(path, "orders", 8)
        bus, since = SlowBus(0), NOW - timedelta(hours=1)
        assert await republish(harness.stores["orders"], bus, clock, since, on_sent=lambda _: None, patience_seconds=60) == 8
        assert clock.slept > 60


@pytest.mark.slow
async def test_postgresql_publishes_the_same_messages_again(postgres: PostgresServer) -> None:
    """They are identical to the first ones, and the same rows are selected as with SQLite."""
    bus = _RejectingBus(0)
    async with harness_at(migrated_url(postgres)) as harness:
        await harness.submit("orders", submitted(oid(1)))
        await harness.submit("orders", submitted(oid(2)))
        now = harness.clock.now()
        store = harness.stores["orders"]
        outbox_messages = await store.database.read(lambda connection: store.fetch_due(connection, now, 10, timedelta(0)))
        first, second = sorted(outbox_message for outbox_message in outbox_messages if outbox_message.subject == "orders.created.v1")
        await store.database.write(lambda connection: store.mark_sent(connection, [first.id], now))
        await republish(store, bus, harness.clock, now - timedelta(hours=1), on_sent=lambda _: None)
        assert bus.published == [to_message(first)]
        assert dict(bus.published[0].headers) == dict(to_message(first).headers)
        assert await count(store, now - timedelta(hours=1)) == 1
        assert await count(store, now + timedelta(seconds=1)) == 0
        later = now + timedelta(minutes=1)
        await store.database.write(lambda connection: store.mark_sent(connection, [second.id], later))
        assert [await count(store, since) for since in (now, later, later + timedelta(microseconds=1))] == [2, 1, 0]


def test_the_command_needs_nats(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the memory bus it exits with 2 and one line."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{path}")
    result = run("--since", "1h")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "fulfilment: BUS: must be nats; the memory bus has no streams to publish to again\n"
    assert not path.exists()


@pytest.mark.slow
def test_nats_out_of_reach_is_reported_with_exit_code_3(configured_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one line on stderr."""
    configured_server.stop()
    result = run("--since", "1h")
    assert (result.exit_code, result.stdout) == (3, "")
    assert len(result.stderr.splitlines()) == 1


def test_a_module_that_this_process_does_not_run_is_a_usage_error(configured_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outbox is in another database."""
    monkeypatch.setenv("MODULES", "orders")
    assert run("--since", "1h", "--module", "payments").exit_code == 2


@pytest.mark.slow
def test_a_terminal_shows_a_progress_bar(configured_server: NatsServer, path: Path) -> None:
    """The bar is on stderr; stdout has the one result line."""
    insert(path, "orders", 20)
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 100))
    done = subprocess.run(
        [sys.executable, "-m", "app", "republish", "--since", "1h"],
        stdout=subprocess.PIPE, stderr=follower, env=dict(os.environ), check=True, timeout=60,
    )  # fmt: skip
    os.close(follower)
    output = os.read(leader, 65536).decode()
    os.close(leader)
    assert "republish: 100%" in output
    assert "20/20" in output
    assert len(done.stdout.splitlines()) == 1


class _RejectingBus:
    """A bus that rejects each message *rejections* times before it accepts it."""

    is_connected = True
    problems = ()

    def __init__(self, rejections: int) -> None:
        self.rejections = rejections
        self.attempts: dict[str, int] = {}
        self.accepted_ids: list[str] = []
        self.published: list[Message] = []

    def publish(self, message: Message) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.attempts[message.id] = self.attempts.get(message.id, 0) + 1
        if self.attempts[message.id] <= self.rejections:
            future.set_exception(PublishRetryable("not now"))
        else:
            self.published.append(message)
            self.accepted_ids.append(message.id)
            future.set_result(None)
        return future

    async def subscribe(self, consumer: str, subjects: Sequence[str]) -> Subscription:
        raise NotImplementedError

    async def close(self, grace_seconds: float = 5.0) -> None:
        raise NotImplementedError


async def _insert_sent(harness: Harness, message: Message) -> None:
    at = harness.clock.now().isoformat(timespec="microseconds")
    values = (message.id, message.id, message.subject, message.key, message.body, at, at, at)
    await harness.database.write(
        lambda connection: connection.exec_driver_sql(
            "INSERT INTO orders_outbox (id, event_id, subject, key, body, correlation_id, causation_id, traceparent,"
            " occurred_at, due_at, sent_at) VALUES (?, ?, ?, ?, ?, 'c', 'c', '', ?, ?, ?)",
            values,
        )
    )


def _has_outcomes(harness: Harness, outcomes: dict[str, int]) -> bool:
    return _outcomes(harness) == outcomes


def _outcomes(harness: Harness) -> dict[str, int]:
    """Return the counts of handled messages by outcome, from the metrics."""
    found = re.findall(r'messages_handled_total\{(.*)\} (.*)', harness.metrics.render().decode())
    return {re.findall('outcome="(.*?)"', labels)[0]: int(float(count)) for labels, count in found}
