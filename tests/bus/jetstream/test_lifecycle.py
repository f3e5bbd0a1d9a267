"""A bus that closes, loses its connection or changes its groups, on a simulated server: what others get, and what it still shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import nats.errors
import pytest

from bus.jetstream.admin.server_config import ServerConfig
from bus.jetstream.admin.stalls import STALLED_SECONDS
from bus.jetstream.admin.topology import ADVISORIES, DEAD_LETTERS, advisory_consumer_plan, consumer_plans
from bus.jetstream.bus import JetStreamBus
from bus.jetstream.connection import Connection
from bus.jetstream.consumer_group import ConsumerGroup
from bus.jetstream.servers import Servers
from tests.bus.contract import CREATED, RESERVED, expect_nothing, message, publish, take, take_one
from tests.bus.features import InMemoryDeadLetters
from tests.bus.jetstream.brokers import SimulatedBroker
from tests.bus.jetstream.harness import until
from tests.clock import VirtualClock
from tests.simulation.broker.harness import SimulatedHarness

ACK_WAIT_SECONDS = 30.0


@pytest.fixture
async def broker() -> AsyncIterator[SimulatedBroker]:
    async with SimulatedBroker.start_up() as broker:
        yield broker


@pytest.fixture
async def harness(broker: SimulatedBroker) -> AsyncIterator[SimulatedHarness]:
    async with broker.harness(dedup_seconds=120.0, ack_wait_seconds=ACK_WAIT_SECONDS) as harness:
        yield harness


# The end


async def test_a_bus_that_closes_leaves_new_messages_to_others(harness: SimulatedHarness) -> None:
    """While it waits for what is in hand, another process receives what comes; and it is not connected any more, even after a reconnect."""
    closing, other = await harness.another("closing"), await harness.another()
    member = await closing.subscribe("inventory", [CREATED])
    harness.bus.publish(message(b"in hand"))
    delivery = await take_one(harness, member)
    assert await member.fetch(10, 0.1) == []
    remaining = await other.subscribe("inventory", [CREATED])
    ending = asyncio.create_task(closing.close(20))
    await harness.rest()
    publish(harness, 5)
    began = harness.monotonic()
    for each in await take(harness, remaining, 5, 2):
        await each.ack()
    assert harness.monotonic() - began < 2
    harness.network.link("closing").drop()
    await harness.pass_time(3)
    assert not closing.is_connected
    await delivery.ack()
    await ending
    await expect_nothing(harness, remaining)


async def test_what_is_in_flight_at_the_close_still_ends_well(harness: SimulatedHarness) -> None:
    """A publish whose answer is on its way, and an ack that was given just before."""
    closing, other = await harness.another(), await harness.another()
    member = await closing.subscribe("inventory", [CREATED])
    await closing.publish(message(b"1"))
    await (await take_one(harness, member)).ack()
    published = closing.publish(message(b"2", subject=RESERVED))
    await closing.close(5)
    assert published.exception() is None
    await expect_nothing(harness, await other.subscribe("inventory", [CREATED]))


async def test_the_last_member_to_leave_returns_what_is_not_fetched(harness: SimulatedHarness) -> None:
    """The first one to leave does not: the others fetch it."""
    leaving = await harness.another()
    members = [await leaving.subscribe("inventory", [CREATED]) for _ in range(2)]
    assert await members[0].fetch(20, 0.1) == []
    publish(harness, 20)
    await until(lambda: sum(len(each.ready) for each in leaving._consumers()) == 20)
    await members[0].close()
    assert len(await members[1].fetch(5, 1)) == 5
    remaining = await harness.bus.subscribe("inventory", [CREATED])
    began = harness.monotonic()
    await members[1].close()
    await take(harness, remaining, 20, 5)
    assert harness.monotonic() - began < 5


async def test_a_connection_that_comes_after_the_close_is_closed(broker: SimulatedBroker) -> None:
    """A slow server accepts it when it is no longer wanted."""
    bus = JetStreamBus(broker.clock, InMemoryDeadLetters(), Servers(urls=("nats://late:4222",)))
    link = broker.network.link("late")
    link.delay_seconds = 0.5
    connecting = asyncio.create_task(bus.connect())
    await broker.clock.sleep(0.7)
    await bus.close(0)
    await asyncio.wait([connecting])
    await broker.clock.sleep(5)
    assert link.connections == {}


# Groups


async def test_the_streams_of_a_group_take_turns(harness: SimulatedHarness) -> None:
    """A fetch has no more than it wants, and no stream with many messages holds up the other."""
    member = await harness.bus.subscribe("payments", [CREATED, RESERVED])
    publish(harness, 30, CREATED)
    publish(harness, 30, RESERVED)
    assert len(await member.fetch(1, 1)) == 1
    await harness.rest()
    received = []
    for _ in range(4):
        batch = await member.fetch(3, 1)
        assert len(batch) <= 3
        received.append({each.message.subject for each in batch})
        await harness.rest()
    assert {CREATED} in received
    assert {RESERVED} in received


def fake_consumer(ready: int, asked: list[tuple[int, bool]]) -> Any:
    """Return a pull consumer with so many messages, each a number from 0; its requests go to *asked*."""
    consumer: Any = SimpleNamespace(ready=list(range(ready)), outstanding=0)

    def take(subscription: Any, limit: int, now: float) -> Any:
        taken, consumer.ready = consumer.ready[:limit], consumer.ready[limit:]
        return taken

    consumer.take, consumer.request = take, lambda wanted, is_standby: asked.append((wanted, is_standby))
    return consumer


async def test_a_stream_with_many_messages_holds_up_no_other() -> None:
    """The pull consumers of a group take turns at being the first; together they deliver no more than is wanted."""
    host: Any = SimpleNamespace(clock=VirtualClock(), ack_wait_seconds=30.0, max_tries=5, send=None, check_idle=None)
    group = ConsumerGroup(host, "payments")
    busy, quiet = fake_consumer(100, []), fake_consumer(4, [])
    group.consumers = [busy, quiet]
    subscription: Any = None
    assert [len(group.take(subscription, 5, 0.0)) for _ in range(4)] == [5, 5, 5, 5]
    assert quiet.ready == []


async def test_a_group_requests_what_its_fetches_wait_for_beyond_what_is_there() -> None:
    """Of each stream, when a fetch begins to wait, when a message leaves others waiting, and when a pause ends; on standby as such."""
    host: Any = SimpleNamespace(clock=VirtualClock(), ack_wait_seconds=30.0, max_tries=5, send=None, check_idle=None, is_closing=False)
    group, asked = ConsumerGroup(host, "payments"), list[tuple[int, bool]]()
    group.consumers = [fake_consumer(0, asked), fake_consumer(0, asked)]
    member = group.subscribe()
    fetching = asyncio.create_task(member.fetch(10, 60))
    await asyncio.sleep(0)
    assert asked == [(10, False)] * 2
    asked.clear()
    other = asyncio.create_task(group.subscribe().fetch(7, 60, True))
    await asyncio.sleep(0)
    assert asked == [(17, True)] * 2
    asked.clear()
    group.consumers[0].ready = [1, 2, 3]  # type: ignore[assignment]
    group.message_available(group.consumers[0])
    assert asked == [(4, True)], "one of the fetches is woken and takes the three"
    await fetching
    asked.clear()
    paused = group.subscribe()
    paused.pause()
    waiting = asyncio.create_task(paused.fetch(5, 60))
    await asyncio.sleep(0)
    asked.clear()
    paused.resume()
    assert asked == [(12, False)] * 2
    for task in other, waiting:
        task.cancel()
    await asyncio.wait([other, waiting])


async def test_a_durable_that_is_left_is_no_problem_any_more(harness: SimulatedHarness) -> None:
    """What differs is reported as long as this process uses it."""
    bus = await harness.another(verify_seconds=1e6)
    member = await bus.subscribe("inventory", [CREATED])
    await harness.rest()
    consumers = harness.server.jetstream.consumers
    consumers["ORDERS", "inventory"].config["max_deliver"] = 3
    again = await bus.subscribe("inventory", [CREATED, "orders.confirmed.v1"])
    await until(lambda: any("max_deliver is 3" in each for each in bus.problems))
    label = "consumer inventory on ORDERS"
    bus._stall_detector.observe(label, ServerConfig({}, {"num_pending": 1, "paused": False}))
    await harness.pass_time(STALLED_SECONDS)
    assert [each.partition(" delivers")[0] for each in bus.stalls] == [label]
    await member.close()
    await again.close()
    assert (bus.problems, bus.stalls) == ([], [])


async def test_what_something_else_in_the_process_reads_is_verified_too(harness: SimulatedHarness) -> None:
    """The durable of the advisories, and the streams of all; what is refused, lost or stalled is shown as work without progress."""
    plan = advisory_consumer_plan("inventory", consumer_plans("inventory", [CREATED]))
    bus = await harness.another(streams=["ORDERS", ADVISORIES, DEAD_LETTERS], durables=[plan], verify_seconds=1.0, stalled_seconds=10.0)
    await bus.subscribe("inventory", [RESERVED])
    await harness.pass_time(3)
    assert (bus.problems, bus.stalls) == ([], [])
    jetstream = harness.server.jetstream
    jetstream.consumers[ADVISORIES, plan.name].config["max_ack_pending"] = 7
    jetstream.streams["INVENTORY"].config["max_msgs"] = 5
    jetstream.streams["ORDERS"].config["max_age"] = 0
    await harness.pass_time(3)
    assert [each.partition(": ")[0] for each in bus.problems] == [
        f"consumer {plan.name} on {ADVISORIES}", "stream INVENTORY", "stream ORDERS"
    ]  # fmt: skip
    [consumer] = bus._consumers()
    consumer.refusal = "Exceeded MaxWaiting"
    assert bus.stalls == ["consumer inventory on INVENTORY refuses requests: Exceeded MaxWaiting"]
    consumer.refusal = ""
    await bus.publish(message())
    await harness.pass_time(3)
    jetstream.streams["ORDERS"].purge()
    await harness.pass_time(3)
    assert [each.partition(" was purged")[0] for each in bus.stalls] == ["stream ORDERS"]
    await bus.publish(message(subject=RESERVED))
    await harness.pass_time(15)
    assert any("consumer inventory on INVENTORY delivers none of 1 messages" in each for each in bus.stalls)


async def test_the_marks_are_of_the_streams_that_the_process_may_read(harness: SimulatedHarness) -> None:
    """The user of a module may not look at the streams of advisories and dead letters."""
    bus = await harness.another(streams=["ORDERS", ADVISORIES, DEAD_LETTERS])
    assert list(bus.stored_marks._seen) == ["ORDERS"]


# The connection


@pytest.fixture
def connection() -> Connection:
    async def on_connected(client: Any) -> None: ...

    return Connection(
        VirtualClock(), Servers(urls=("nats://one:4222",)), name="test", inbox_prefix="_INBOX", ping_seconds=5.0,
        on_connected=on_connected, on_disconnected=lambda: None,
    )  # fmt: skip


async def test_a_connection_forgets_what_was_refused_on_the_one_before(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    """Permissions may have changed since: each is reported once for a connection, and so is why a server refuses."""
    client: Any = SimpleNamespace(is_connected=True, connected_url=SimpleNamespace(hostname="one"))
    connection._client = client
    for _ in range(2):
        await connection._on_connected(client)
        assert connection.denied == {}
        for _ in range(3):
            connection._on_error(nats.errors.Error('nats: permissions violation for publish to "orders.created.v1"'))
            connection._report_refusal(OSError("connection refused"))
        assert len(connection.denied) == 1
    assert caplog.text.count("permissions violation") == 2
    assert caplog.text.count("out of reach") == 2


async def test_what_need_not_be_sent_any_more_is_not_written(connection: Connection) -> None:
    """A publish that has ended meanwhile, which the outbox repeats; what cannot be written is reported to its observer alone."""
    written: list[str] = []
    failed: list[Exception] = []

    def write(subject: str, *arguments: Any) -> bool:
        if subject == "bad":
            raise ValueError("no subject")
        written.append(subject)
        return False

    async def flush_written() -> None:
        written.append("flush")

    client: Any = SimpleNamespace(write=write, flush_written=flush_written)
    for subject, is_done in ("over", True), ("bad", False), ("good", False):
        observer: Any = SimpleNamespace(is_done=is_done, fail=failed.append)
        connection.send(subject, b"", "", None, observer)
    await connection._write_all(client)
    assert (written, [str(each) for each in failed]) == (["good", "flush"], ["no subject"])
