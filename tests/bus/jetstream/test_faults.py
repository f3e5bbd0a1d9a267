"""Faults and pitfalls of JetStream and its client, one test each, on a real server and a simulated one, which these tests may kill."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from app.clock import SystemClock
from bus.errors import BrokerUnreachable, BusClosed, PublishRefused, PublishRetryable
from bus.jetstream.admin.configs import consumer_config, ensure, stream_config
from bus.jetstream.admin.topology import ACK_PENDING_MAX, StreamPlan, consumer_plans
from bus.jetstream.bus import JetStreamBus, Servers
from bus.jetstream.pull_consumer import REQUEST_SECONDS
from bus.port import MAX_TRIES, Bus, Clock, Delivery, Message
from tests.bus.contract import CREATED, RESERVED, expect_nothing, message, publish, take, take_one
from tests.bus.features import Harness, InMemoryDeadLetters
from tests.bus.jetstream.brokers import Broker, RealBroker, SimulatedBroker
from tests.bus.jetstream.harness import JetStreamHarness, publish_all, until
from tests.clock import VirtualClock
from tests.nats import NatsServer

OTHER = "orders.cancelled.v1"

real = pytest.mark.parametrize("server", [pytest.param("real", marks=pytest.mark.slow)], indirect=True)
"""For a test of what the simulated server does not have."""


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.slow)])
async def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    """A simulated server on a virtual clock, which passes by itself, or a real one."""
    if request.param == "real":
        with RealBroker(tmp_path_factory.mktemp("nats")) as real_server:
            yield real_server
    else:
        async with SimulatedBroker.start_up() as simulated_server:
            yield simulated_server


@pytest.fixture
async def harness(server: Broker) -> AsyncIterator[Any]:
    async with server.harness(dedup_seconds=120.0) as harness:
        yield harness


@pytest.fixture
async def js(server: Broker) -> AsyncIterator[JetStreamContext]:
    """The JetStream context of another client."""
    client = await nats.connect(server.url, error_cb=_ignore)
    yield client.jetstream()
    await client.close()


async def _ignore(error: Exception) -> None:
    """The errors of a killed server are expected here."""


def test_the_jetstream_bus_has_the_types_of_the_port() -> None:
    """mypy checks the types against the protocols."""
    clock: Clock = SystemClock()
    bus: Bus = JetStreamBus(clock, InMemoryDeadLetters(), Servers(urls=("nats://127.0.0.1:1",)))
    harness: type[Harness] = JetStreamHarness
    assert not bus.is_connected
    assert bus.problems == []
    assert harness is JetStreamHarness


# Connecting


async def test_the_first_connection_waits_for_the_server(server: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """The server may start later; until then a publish fails at once, and a subscription waits for its messages."""
    server.kill()
    bus = JetStreamBus(server.clock, InMemoryDeadLetters(), Servers(urls=(server.url,)))
    assert not bus.is_connected
    connecting = asyncio.create_task(bus.connect())
    member = await bus.subscribe("inventory", [CREATED])
    with pytest.raises(PublishRetryable):
        await bus.publish(message())
    assert await member.fetch(1, 0.05) == []
    await until(lambda: "out of reach" in caplog.text)
    server.start()
    await asyncio.wait_for(connecting, 20)
    sent = message()
    await publish_all(bus, [sent])
    [delivery] = await member.fetch(1, 5)
    assert delivery.message == sent
    await delivery.ack()
    assert bus.problems == []
    assert caplog.text.count("out of reach") == 1
    await bus.close()


async def test_the_first_connection_fails_after_its_time_limit() -> None:
    """After five minutes, with growing delays between the attempts."""

    class RecordingClock(VirtualClock):
        slept: list[float] = []

        async def sleep(self, seconds: float) -> None:
            self.slept.append(seconds)
            await super().sleep(seconds)

    clock = RecordingClock()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    bus = JetStreamBus(clock, InMemoryDeadLetters(), Servers(urls=(f"nats://127.0.0.1:{port}",)))
    connecting = asyncio.create_task(bus.connect())
    while not connecting.done():
        if (at := clock.next_wake()) is not None:
            await clock.advance(at - clock.monotonic())
        await asyncio.sleep(0.001)
    with pytest.raises(BrokerUnreachable, match="no NATS server"):
        await connecting
    assert clock.monotonic() == pytest.approx(300)
    assert clock.slept[0] <= 0.1 < max(clock.slept) <= 10
    assert len(set(clock.slept)) > len(clock.slept) / 2, "no jitter"
    await bus.close()


async def test_a_bus_reconnects_to_a_restarted_server(harness: Any, server: Broker) -> None:
    """
    While the server is unavailable a publish fails at once; afterwards messages flow again, and acknowledged ones stay
    settled.
    """
    member = await harness.bus.subscribe("inventory", [CREATED])
    _, published = publish(harness, 5)
    await asyncio.gather(*published)
    for delivery in await take(harness, member, 5):
        await delivery.ack()
    await harness.rest()
    server.stop()
    await until(lambda: not harness.bus.is_connected)
    began = harness.monotonic()
    with pytest.raises(PublishRetryable):
        await harness.bus.publish(message())
    assert harness.monotonic() - began < 4.5
    server.restart()
    await until(lambda: harness.bus.is_connected and harness.bus.reconnects == 1)
    more = [message(b"more") for _ in range(5)]
    await publish_all(harness.bus, more)
    received = [each.message.id for each in await take(harness, member, 5, 5)]
    assert sorted(received) == [each.id for each in more]


async def test_a_connection_that_the_client_has_closed_finally_is_replaced(
    harness: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An error line that the client does not know closes it, whatever its options say about reconnecting."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    client = harness.bus._connection._client
    assert client is not None
    client._transport.write(b"NONSENSE\r\n")
    await until(lambda: harness.bus.reconnects == 1 and harness.bus.is_connected)
    assert harness.bus._connection._client is not client
    sent = message()
    await publish_all(harness.bus, [sent])
    assert (await take_one(harness, member, 5)).message == sent


async def test_a_server_that_hangs_blocks_no_caller(harness: Any, server: Broker) -> None:
    """Every publish ends in time, an ack does not wait, and closing is bounded."""
    bus = await harness.another(publish_seconds=0.5)
    member = await bus.subscribe("inventory", [CREATED])
    await bus.publish(message())
    [delivery] = await member.fetch(1, 5)
    server.pause()
    try:
        began = harness.monotonic()
        ends = await asyncio.gather(*(bus.publish(message()) for _ in range(1_000)), return_exceptions=True)
        assert {type(end) for end in ends} == {PublishRetryable}
        assert harness.monotonic() - began < 4.5  # without the option it would be five
        began = harness.monotonic()
        await delivery.ack()
        assert harness.monotonic() - began < 5
        began = harness.monotonic()
        await bus.close(0.2)
        assert harness.monotonic() - began < 12
    finally:
        server.resume()


# Publishing


async def test_a_killed_server_neither_loses_nor_duplicates_a_message(harness: Any, server: Broker) -> None:
    """
    Every future of 200 pending publishes ends; once all are published again under their ids, each is in the stream
    once.
    """
    bus = harness.bus
    member = await bus.subscribe("inventory", [CREATED])
    messages = [message(str(n).encode()) for n in range(400)]
    await asyncio.gather(*(bus.publish(each) for each in messages[:200]))
    server.pause()  # or it would have answered all of them before it is killed
    pending = [bus.publish(each) for each in messages[200:]]
    await asyncio.sleep(0)
    server.kill()
    ends = await asyncio.wait_for(asyncio.gather(*pending, return_exceptions=True), 10)
    assert all(end is None or isinstance(end, PublishRetryable) for end in ends)
    assert any(isinstance(end, PublishRetryable) for end in ends), "the server was too fast for this test"
    server.restart()
    await until(lambda: bus.is_connected)
    await publish_all(bus, messages)
    received: list[str] = []
    while batch := await member.fetch(100, 1.0):
        for delivery in batch:
            received.append(delivery.message.id)
            await delivery.ack()
    assert Counter(received) == Counter(each.id for each in messages)


async def test_a_full_stream_rejects_new_messages_and_recovers(
    harness: Any, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    """No stored message is dropped for a new one; a rejected one may be published again."""
    caplog.set_level(logging.INFO)
    config = stream_config(StreamPlan("ORDERS", ("orders.>",)), replicas=1, dedup_seconds=harness.dedup_seconds)
    await js.update_stream(config, max_bytes=20_000)
    ends = await asyncio.gather(
        *(harness.bus.publish(message(b"x" * 1_000)) for _ in range(50)), return_exceptions=True
    )
    taken = sum(end is None for end in ends)
    assert 10 <= taken < 20
    assert {type(end) for end in ends} == {type(None), PublishRetryable}
    assert "10077" in str(ends[-1])
    assert (await js.stream_info("ORDERS")).state.messages == taken
    await js.update_stream(config, max_bytes=-1)
    await publish_all(harness.bus, [message()])
    assert caplog.text.count("does not take messages") == 1
    assert caplog.text.count("takes messages again") == 1


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (409, 10158, PublishRetryable),  # "already stored" it is not: a duplicate is being stored, without a quorum
        (503, 10077, PublishRetryable),
        (503, 10008, PublishRetryable),
        (500, 10052, PublishRetryable),
        (400, 10109, PublishRetryable),  # the stream is sealed
        (400, 10060, PublishRetryable),
        (400, 10054, PublishRefused),
        (400, 10097, PublishRefused),
    ],
)
async def test_a_stream_refuses_for_now_or_because_of_the_message(
    harness: Any, js: JetStreamContext, status: int, code: int, error: type[Exception]
) -> None:
    """Only a message that is too large is at fault itself; every other refusal is the stream's, whatever its code."""

    async def refuse(msg: Msg) -> None:
        answer = {"error": {"code": status, "err_code": code, "description": "not now"}, "seq": 0}
        await msg.respond(json.dumps(answer).encode())

    await js._nc.subscribe("elsewhere.>", cb=refuse)
    for _ in range(2):  # the client's first ping overtakes what it has not written yet
        await js._nc.flush()
    with pytest.raises(error, match=f"not now .{code}"):
        await harness.bus.publish(message(subject="elsewhere.a.v1"))


async def test_a_missing_stream_is_created(harness: Any, js: JetStreamContext) -> None:
    """A publish to it is retryable, and the stream is created meanwhile."""
    for info in await js.streams_info():
        await js.delete_stream(str(info.config.name))
    await harness.pass_time(1)  # the server deletes their files
    with pytest.raises(PublishRetryable, match="503"):
        await harness.bus.publish(message())
    await publish_all(harness.bus, [message(), message(subject=RESERVED), message(subject="dead.inventory.orders.created.v1")])
    streams = {info.config.name: info.config.subjects for info in await js.streams_info()}
    assert streams["ORDERS"] == ["orders.>"]
    assert streams["DEAD_LETTERS"] == ["dead.>"]


async def test_a_message_that_can_never_be_sent_is_refused(harness: Any) -> None:
    """The error is not retryable, and the connection is kept."""
    strange = [
        message(b"x" * 2_000_000),
        message(b"x" * 1_048_576),  # the server counts the headers, too
        message(headers={"two words": "x"}),
        message(headers={"lone": "\ud800"}),
        message(subject="two words"),
        message(subject=""),
    ]
    ends = await asyncio.gather(*(harness.bus.publish(each) for each in strange), return_exceptions=True)
    assert {type(end) for end in ends} == {PublishRefused}
    assert "2,000,0" in str(ends[0])
    assert "1,048,576" in str(ends[0])
    await harness.bus.publish(message())
    assert harness.bus.reconnects == 0


async def test_a_publish_does_not_change_the_headers_of_the_message(harness: Any) -> None:
    """They belong to the caller, who may publish the same message again."""
    headers = {"ce-id": "e-1"}
    sent = message(key="order-1", headers=headers)
    await harness.bus.publish(sent)
    assert headers == {"ce-id": "e-1"}


async def test_a_message_costs_no_task(harness: Any) -> None:
    """A thousand pending publishes and a thousand messages in hand need no more tasks than one."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    await publish_all(harness.bus, [message()])
    await take_one(harness, member, 5)
    before = len(asyncio.all_tasks())
    _, published = publish(harness, 1_000)
    assert len(asyncio.all_tasks()) <= before
    await asyncio.gather(*published)
    await take(harness, member, 1_000)
    assert len(asyncio.all_tasks()) <= before


# Receiving


async def test_a_message_of_another_publisher_has_an_id(harness: Any, js: JetStreamContext) -> None:
    """Its own id, that of its event, or else its place in the stream; its other headers are kept."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    await js.publish(CREATED, b"1", headers={"Nats-Msg-Id": "mine", "ce-id": "e-1", "X": "y"})
    await js.publish(CREATED, b"2", headers={"ce-id": "e-2", "ce-subject": "order-2"})
    await js.publish(CREATED, b"3")
    first, second, third = [each.message for each in await take(harness, member, 3, 5)]
    assert first == Message(CREATED, "mine", b"1", "", {"ce-id": "e-1", "X": "y"})
    assert second == Message(CREATED, "e-2", b"2", "order-2", {"ce-id": "e-2"})
    assert third == Message(CREATED, "ORDERS:3", b"3", "", {})


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0 \xff\xfe\r\n\r\n",
        b"NATS/1.0 404 No Messages\r\n\r\n",
        b"NATS/1.0\r\nStatus: 409\r\nDescription: Consumer Deleted\r\n\r\n",
    ],
    ids=["no text", "status line", "status header"],
)
async def test_a_malformed_header_block_does_not_close_the_connection(
    harness: Any, js: JetStreamContext, block: bytes
) -> None:
    """The message is delivered like others, and is not taken for a status of the server."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    assert js._nc._transport is not None
    js._nc._transport.write(b"HPUB %s %d %d\r\n%sbody\r\n" % (CREATED.encode(), len(block), len(block) + 4, block))
    await js._nc.flush()
    delivery = await take_one(harness, member, 5)
    assert (delivery.message.body, delivery.message.id) == (b"body", "ORDERS:1")
    await delivery.term("unreadable")
    assert len(await harness.dead_letters(1)) == 1
    assert harness.bus.reconnects == 0


async def test_a_deleted_consumer_is_created_again(
    harness: Any, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    """Also while a fetch waits; it delivers everything once more, and one log line reports what happened."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    await publish_all(harness.bus, [message(b"before")])
    await (await take_one(harness, member, 5)).ack()
    waiting = asyncio.create_task(member.fetch(1, 15))
    await harness.rest()
    await js.delete_consumer("ORDERS", "inventory")
    assert [each.message.body for each in await waiting] == [b"before"]
    await publish_all(harness.bus, [message(b"after")])
    assert (await take_one(harness, member, 5)).message.body == b"after"
    assert len([each for each in caplog.records if each.levelno >= logging.WARNING]) == 1


async def test_a_deleted_stream_is_created_again(harness: Any, js: JetStreamContext) -> None:
    """Its consumer is created too; to publish its messages again is the task of the outbox."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    await publish_all(harness.bus, [message(b"before")])
    await (await take_one(harness, member, 5)).ack()
    waiting = asyncio.create_task(member.fetch(1, 15))
    await harness.rest()
    await js.delete_stream("ORDERS")
    await publish_all(harness.bus, [message(b"after")])
    assert [each.message.body for each in await waiting] == [b"after"]


async def test_a_buffered_message_spends_no_try(harness: Any) -> None:
    """
    While the database is unavailable nothing is fetched; the ack deadlines of what has arrived are extended meanwhile.
    """
    member = await harness.bus.subscribe("inventory", [CREATED])
    assert await member.fetch(50, 0.3) == []
    publish(harness, 20)
    await until(lambda: sum(len(each.ready) for each in harness.bus._consumers()) == 20)
    await harness.pass_time((MAX_TRIES + 1) * harness.ack_wait_seconds)
    [consumer] = harness.bus._consumers()
    await until(lambda: harness.monotonic() - next(iter(consumer.ready.values())).touched_at > harness.ack_wait_seconds / 4)
    taken = await take(harness, member, 20)
    began = harness.monotonic()
    assert {each.tries for each in taken} == {1}
    again = await take(harness, member, 20, 2 * harness.ack_wait_seconds)
    assert {each.tries for each in again} == {2}
    assert harness.monotonic() - began > 0.85 * harness.ack_wait_seconds, "they were delivered with less than their time"


async def test_the_tries_of_a_failing_message_are_spread_by_the_delay(harness: Any) -> None:
    """Without a delay, five naks would spend all tries within milliseconds."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    await publish_all(harness.bus, [message()])
    began = harness.monotonic()
    for _ in range(MAX_TRIES - 1):
        await (await take_one(harness, member, 5)).nak(0.2)
    assert (await take_one(harness, member, 5)).tries == MAX_TRIES
    assert harness.monotonic() - began >= 0.8


async def test_processes_share_the_messages_of_a_group(harness: Any) -> None:
    """Members of one group in several processes get each message once between them."""
    buses = [harness.bus, await harness.another(), await harness.another()]
    members = [await bus.subscribe("inventory", [CREATED]) for bus in buses]
    sent = [message() for _ in range(300)]
    await publish_all(harness.bus, sent)
    received: dict[int, list[str]] = {0: [], 1: [], 2: []}

    async def work(number: int) -> None:
        while batch := await members[number].fetch(5, 1.0):
            for delivery in batch:
                received[number].append(delivery.message.id)
                await delivery.ack()

    await asyncio.gather(*(work(number) for number in range(3)))
    assert Counter(received[0] + received[1] + received[2]) == Counter(each.id for each in sent)
    assert all(received.values())


async def test_a_process_on_standby_receives_only_what_no_other_process_has_requested(harness: Any) -> None:
    """While another process fetches, it receives nothing; as soon as messages are left waiting, it receives those."""
    active = await harness.bus.subscribe("inventory", [CREATED])
    standby = await (await harness.another()).subscribe("inventory", [CREATED])
    received: list[bytes] = []

    async def work() -> None:
        while len(received) < 100:
            batch = await active.fetch(100, 30)
            received.extend([delivery.message.body for delivery in batch])
            await asyncio.gather(*(delivery.ack() for delivery in batch))

    working = asyncio.create_task(work())
    await until(lambda: all(consumer.outstanding for consumer in harness.bus._consumers()))
    waiting = asyncio.create_task(standby.fetch(100, 60, True))
    for _ in range(10):
        await publish_all(harness.bus, [message() for _ in range(10)])
    async with asyncio.timeout(30):
        await working
    assert len(received) == 100
    assert not waiting.done()
    requested = sum(consumer.outstanding for consumer in harness.bus._consumers())
    await publish_all(harness.bus, [message(b"left waiting") for _ in range(requested + 50)])
    taken = len(await waiting)
    while taken < 50:
        taken += len(await standby.fetch(100, 30, True))
    assert taken == 50


@real
async def test_a_standby_makes_one_request_while_another_process_holds_all_messages_that_it_may(server: Broker) -> None:
    """The server keeps the request until one is acknowledged; more of them would take the messages from the other process."""
    async with server.harness(ack_wait_seconds=60.0) as harness:
        active = await harness.bus.subscribe("inventory", [CREATED])
        standby = await (await harness.another()).subscribe("inventory", [CREATED])
        await publish_all(harness.bus, [message() for _ in range(ACK_PENDING_MAX + 300)])
        held: list[Delivery] = []
        while len(held) < ACK_PENDING_MAX:
            held += await active.fetch(min(256, ACK_PENDING_MAX - len(held)), 30)
        waiting: list[int] = []

        async def look(stream: JetStreamContext) -> None:
            for consumer in harness.bus._consumers():
                waiting.append((await stream.consumer_info(consumer.plan.stream, consumer.plan.name)).num_waiting or 0)

        await harness.administer(look)
        before = waiting.pop()
        for _ in range(8):
            assert await standby.fetch(100, 0.3, True) == []
        await harness.administer(look)
        assert waiting.pop() <= before + 1
        await asyncio.gather(*(delivery.ack() for delivery in held))
        assert await standby.fetch(100, 30, True)


async def test_a_process_on_standby_takes_over_when_the_other_one_is_gone(harness: Any) -> None:
    """It asks the server several times a second."""
    active = await harness.another()
    assert await (await active.subscribe("inventory", [CREATED])).fetch(1, 0.1) == []
    standby = await harness.bus.subscribe("inventory", [CREATED])
    assert await standby.fetch(1, 0.1, True) == []
    await active.close(0)
    began = harness.monotonic()
    await publish_all(harness.bus, [message()])
    assert len(await standby.fetch(1, 30, True)) == 1
    assert harness.monotonic() - began < REQUEST_SECONDS


async def test_a_process_that_closes_returns_its_messages_at_once(server: Broker) -> None:
    """They are redelivered to another process, those included that were not fetched yet."""
    async with server.harness(ack_wait_seconds=20.0) as harness:
        closing = await harness.another()
        member = await closing.subscribe("inventory", [CREATED])
        assert await member.fetch(20, 0.3) == []
        await publish_all(harness.bus, [message() for _ in range(20)])
        await until(lambda: sum(len(each.ready) for each in closing._consumers()) == 20)
        assert len(await member.fetch(5, 5)) == 5
        remaining = await harness.bus.subscribe("inventory", [CREATED])
        began = harness.monotonic()
        await closing.close(0)
        await take(harness, remaining, 20)
        assert harness.monotonic() - began < 5


@real
async def test_a_member_that_closes_late_returns_nothing(server: Broker) -> None:
    """
    What is overdue is redelivered already: a nak now would be taken for one of the later delivery, and cost a try more.
    """
    async with server.harness(ack_wait_seconds=2.0) as harness:
        closing = await harness.another()
        member = await closing.subscribe("inventory", [CREATED])
        await publish_all(harness.bus, [message()])
        await take_one(harness, member)
        remaining = await harness.bus.subscribe("inventory", [CREATED])
        waiting = asyncio.create_task(remaining.fetch(1, 10.0))
        await harness.rest()
        time.sleep(2.1)  # noqa: ASYNC251  # the loop is busy: no tick notices what is overdue
        await member.close()
        [delivery] = await waiting
        assert delivery.tries == 2
        await expect_nothing(harness, remaining, for_seconds=0.3)


async def test_an_idle_consumer_closes_at_once(harness: Any) -> None:
    """An empty fetch does not delay the close; the client's own drain would wait for half a minute."""
    bus = await harness.another()
    member = await bus.subscribe("inventory", [CREATED])
    for _ in range(3):
        assert await member.fetch(10, 0.1) == []
    began = harness.monotonic()
    await bus.close()
    assert harness.monotonic() - began < 10
    with pytest.raises(BusClosed):
        await bus.publish(message())


# Streams and durables


async def test_a_server_that_differs_from_the_plan_is_a_problem(harness: Any, js: JetStreamContext) -> None:
    """The bus uses the durable as it is, and reports each field that differs."""
    [plan] = consumer_plans("inventory", [CREATED])
    wanted = consumer_config(plan, ack_wait_seconds=harness.ack_wait_seconds, max_tries=MAX_TRIES)
    await ensure(js, consumers=[("ORDERS", wanted.evolve(max_deliver=3, ack_wait=7.0))])
    stream = stream_config(StreamPlan("ORDERS", ("orders.>",)), replicas=1, dedup_seconds=0.5)
    await js.update_stream(stream, discard="old")
    assert harness.bus.problems == []
    member = await harness.bus.subscribe("inventory", [CREATED])
    await until(lambda: len(harness.bus.problems) == 4)
    assert harness.bus.problems == [
        "consumer inventory on ORDERS: ack_wait is 7, not 0.8",
        "consumer inventory on ORDERS: max_deliver is 3, not 5",
        "stream ORDERS: discard is old, not new",
        "stream ORDERS: duplicate_window is 0.5, not 120",
    ]
    await publish_all(harness.bus, [message()])
    await (await take_one(harness, member, 5)).ack()


async def test_an_older_and_a_newer_version_share_a_durable(harness: Any, js: JetStreamContext) -> None:
    """
    The newer version adds a subject to the durable; messages that the older does not subscribe to reach the newer in
    the end.
    """
    older = await harness.bus.subscribe("inventory", [CREATED])
    await publish_all(harness.bus, [message(b"1")])
    await (await take_one(harness, older, 5)).ack()
    other = await harness.another()
    newer = await other.subscribe("inventory", [CREATED, OTHER])
    await until(lambda: bool(harness.bus._consumers()))
    deadline = harness.monotonic() + 10
    while (await js.consumer_info("ORDERS", "inventory")).config.filter_subjects != sorted([CREATED, OTHER]):
        assert harness.monotonic() < deadline
    received: set[str] = set()

    async def work() -> None:
        while True:
            assert await older.fetch(20, 1.0) == []

    working = asyncio.create_task(work())
    await harness.rest()
    began = harness.monotonic()
    published = [message(b"new", subject=OTHER) for _ in range(10)]
    await publish_all(harness.bus, published)
    while len(received) < 10:
        batch = await newer.fetch(20, 15)
        assert batch
        for delivery in batch:
            received.add(delivery.message.id)
            await delivery.ack()
    assert harness.monotonic() - began < 12, "the older one blocked the newer"
    assert not working.done()
    working.cancel()
    assert received == {each.id for each in published}
    third = await harness.another()
    await third.subscribe("inventory", [CREATED])
    await until(lambda: any(each.is_bound for each in third._consumers()))
    assert [*harness.bus.problems, *other.problems, *third.problems] == []
    assert await harness.dead_letters(0) == []


@pytest.mark.slow
async def test_a_user_without_provisioning_rights_reports_what_is_missing(tmp_path_factory: pytest.TempPathFactory) -> None:
    """
    A worker may publish, request, acknowledge and receive; another user creates streams and durables, which ends the
    problem.
    """
    config = """
    accounts { A {
        jetstream: enabled
        users: [
            { user: admin, password: secret }
            { user: worker, password: secret, permissions: {
                publish: ["orders.>", "$JS.API.CONSUMER.INFO.ORDERS.inventory", "$JS.API.CONSUMER.MSG.NEXT.ORDERS.inventory",
                          "$JS.ACK.ORDERS.inventory.>", "$JS.ACK.*.*.ORDERS.inventory.>"]
                subscribe: ["_INBOX_worker.>"]
            } }
        ]
    } }
    """
    with NatsServer(tmp_path_factory.mktemp("nats"), config=config) as server:
        servers = Servers(urls=server.urls, user="worker", password="secret")
        bus = JetStreamBus(SystemClock(), InMemoryDeadLetters(), servers, name="worker")
        await bus.connect()
        member = await bus.subscribe("inventory", [CREATED])
        with pytest.raises(PublishRetryable):
            await bus.publish(message())

        def is_problem(what: str) -> bool:
            return any(what in each for each in bus.problems)

        for what in ("consumer inventory on ORDERS: ", "stream ORDERS: "):
            await until(partial(is_problem, what))
        assert any('"$js.api.stream.info.orders"' in text for text in bus._connection.denied)  # the verifier relies on it

        admin = await nats.connect(server.url, user="admin", password="secret")
        stream = stream_config(StreamPlan("ORDERS", ("orders.>",)), replicas=1, dedup_seconds=120.0)
        [plan] = consumer_plans("inventory", [CREATED])
        durable = consumer_config(plan, ack_wait_seconds=bus.ack_wait_seconds, max_tries=MAX_TRIES)
        await ensure(admin.jetstream(), [stream], [("ORDERS", durable)])
        sent = message()
        await publish_all(bus, [sent])
        [delivery] = await member.fetch(1, 30)
        assert delivery.message == sent
        await delivery.ack()
        await bus.publish(message(subject=CREATED))
        assert bus.problems == []
        forbidden = bus.publish(message(subject=RESERVED))
        await until(lambda: any("inventory.reserved.v1" in each for each in bus.problems))
        forbidden.cancel()
        await bus.close(0)
        await admin.close()


async def test_a_dead_letter_is_stored_before_its_message_is_terminated(harness: Any, js: JetStreamContext) -> None:
    """While the store is unavailable the message stays in hand, for longer than ``ack_wait``; then it is terminated."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    await publish_all(harness.bus, [message(b"poison")])
    harness.fail_dead_letters(2)
    delivery: Delivery = await take_one(harness, member, 5)
    await delivery.term("unreadable")
    await expect_nothing(harness, member)
    assert await harness.dead_letters(0) == []
    info = await js.consumer_info("ORDERS", "inventory")
    assert (info.num_ack_pending, info.num_redelivered) == (1, 0)
    assert len(await harness.dead_letters(1)) == 1
    deadline = harness.monotonic() + 5
    while (await js.consumer_info("ORDERS", "inventory")).num_ack_pending:
        assert harness.monotonic() < deadline


async def test_a_durable_without_a_filter_lacks_no_subject(harness: Any, js: JetStreamContext) -> None:
    """Without a filter a durable delivers all of its stream: it differs from the plan, and lacks nothing."""
    await js.add_consumer(
        "ORDERS",
        ConsumerConfig(durable_name="inventory", ack_wait=harness.ack_wait_seconds, max_deliver=5, max_ack_pending=1_024),
    )
    member = await harness.bus.subscribe("inventory", [CREATED])
    await publish_all(harness.bus, [message()])
    await (await take_one(harness, member, 5)).ack()
    assert harness.bus.problems == ["consumer inventory on ORDERS: filter_subjects is all of the stream"]


@pytest.mark.slow
async def test_the_certificate_of_the_server_is_verified(tmp_path: Path) -> None:
    """A client with the CA connects; one without it does not, and sends nothing."""
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    request = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext {names}"
    making = await asyncio.create_subprocess_exec(
        "openssl", *request.split(), "-keyout", key, "-out", certificate, stderr=asyncio.subprocess.DEVNULL
    )
    assert await making.wait() == 0
    config = f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}'
    with NatsServer(tmp_path / "nats", config=config) as server:
        bus = JetStreamBus(SystemClock(), InMemoryDeadLetters(), Servers(urls=server.urls, tls_ca=str(certificate)))
        await asyncio.wait_for(bus.connect(), 10)
        await publish_all(bus, [message()])
        await bus.close(0)
        untrusting = JetStreamBus(SystemClock(), InMemoryDeadLetters(), Servers(urls=server.urls), connect_seconds_max=0.5)
        with pytest.raises(BrokerUnreachable, match="certificate"):
            await untrusting.connect()
        await untrusting.close(0)
