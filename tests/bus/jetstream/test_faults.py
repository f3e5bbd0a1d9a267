"""What JetStream and its client do to the unwary, one test each, on a server that these tests may kill."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from app.clock import SystemClock
from bus.errors import BrokerUnreachable, BusClosed, PublishRetryable
from bus.jetstream.admin.configs import consumer_config, ensure, stream_config
from bus.jetstream.admin.topology import StreamPlan, consumer_plans
from bus.jetstream.bus import JetStreamBus, Servers
from bus.port import MAX_TRIES, Bus, Clock, Delivery, Message
from tests.bus.contract import CREATED, RESERVED, message, nothing_comes, publish, take, take_one
from tests.bus.features import Harness, Letters
from tests.bus.jetstream.harness import JetStreamHarness, say, until
from tests.clock import VirtualClock
from tests.nats import NatsServer

pytestmark = pytest.mark.slow

OTHER = "orders.cancelled.v1"


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
async def harness(server: NatsServer) -> AsyncIterator[JetStreamHarness]:
    async with JetStreamHarness.on(server.urls, dedup_seconds=120.0) as harness:
        yield harness


@pytest.fixture
async def js(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    """Somebody else's connection."""
    client = await nats.connect(server.url, error_cb=_ignored)
    yield client.jetstream()
    await client.close()


async def _ignored(error: Exception) -> None:
    """A killed server is what these tests are about."""


def test_it_is_what_the_port_describes() -> None:
    """The types agree with the protocols; mypy reads this."""
    clock: Clock = SystemClock()
    bus: Bus = JetStreamBus(clock, Letters(), Servers(urls=("nats://127.0.0.1:1",)))
    harness: type[Harness] = JetStreamHarness
    assert not bus.is_connected
    assert bus.problems == []
    assert harness is JetStreamHarness


# Connecting


async def test_the_first_connection_waits_for_the_server(server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """It may start after us; until then a publish ends at once, and a subscription waits for what it hears."""
    server.kill()
    bus = JetStreamBus(SystemClock(), Letters(), Servers(urls=server.urls))
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
    await say(bus, [sent])
    [delivery] = await member.fetch(1, 5)
    assert delivery.message == sent
    await delivery.ack()
    assert bus.problems == []
    assert caplog.text.count("out of reach") == 1
    await bus.close()


async def test_the_first_connection_gives_up_in_the_end() -> None:
    """After five minutes, having asked less and less often."""

    class Watched(VirtualClock):
        slept: list[float] = []

        async def sleep(self, seconds: float) -> None:
            self.slept.append(seconds)
            await super().sleep(seconds)

    clock = Watched()
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    bus = JetStreamBus(clock, Letters(), Servers(urls=(f"nats://127.0.0.1:{port}",)))
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


async def test_a_lost_server_is_found_again(harness: JetStreamHarness, server: NatsServer) -> None:
    """Publishing fails at once while it is away; afterwards everything goes on, and what was acknowledged stays so."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    _, said = publish(harness, 5)
    await asyncio.gather(*said)
    for delivery in await take(harness, member, 5):
        await delivery.ack()
    await harness.rest()
    server.stop()
    await until(lambda: not harness.bus.is_connected)
    began = time.monotonic()
    with pytest.raises(PublishRetryable):
        await harness.bus.publish(message())
    assert time.monotonic() - began < 2
    server.restart()
    await until(lambda: harness.bus.is_connected and harness.bus.reconnects == 1)
    more = [message(b"more") for _ in range(5)]
    await say(harness.bus, more)
    heard = [each.message.id for each in await take(harness, member, 5, 5)]
    assert sorted(heard) == [each.id for each in more]


async def test_a_connection_that_the_client_has_closed_for_good_is_replaced(
    harness: JetStreamHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that the client does not know ends it, whatever it was told about reconnecting."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    client = harness.bus._connection._client
    assert client is not None
    client._transport.write(b"NONSENSE\r\n")  # type: ignore[union-attr]
    await until(lambda: harness.bus.reconnects == 1 and harness.bus.is_connected)
    assert harness.bus._connection._client is not client
    sent = message()
    await say(harness.bus, [sent])
    assert (await take_one(harness, member, 5)).message == sent


async def test_a_server_that_hangs_holds_nobody_up(harness: JetStreamHarness, server: NatsServer) -> None:
    """Every publish ends in time, answers do not wait, closing is bounded."""
    bus = await harness.another(publish_seconds=0.5)
    member = await bus.subscribe("inventory", [CREATED])
    await bus.publish(message())
    [delivery] = await member.fetch(1, 5)
    server.pause()
    try:
        began = time.monotonic()
        ends = await asyncio.gather(*(bus.publish(message()) for _ in range(1_000)), return_exceptions=True)
        assert {type(end) for end in ends} == {PublishRetryable}
        assert time.monotonic() - began < 3
        began = time.monotonic()
        await delivery.ack()
        assert time.monotonic() - began < 1
        began = time.monotonic()
        await bus.close(0.2)
        assert time.monotonic() - began < 6
    finally:
        server.resume()


# Publishing


async def test_a_killed_server_loses_nothing_and_doubles_nothing(harness: JetStreamHarness, server: NatsServer) -> None:
    """With 200 on their way: every future ends, and all said again under their ids, each is in the stream once."""
    bus = harness.bus
    member = await bus.subscribe("inventory", [CREATED])
    messages = [message(str(n).encode()) for n in range(400)]
    await asyncio.gather(*(bus.publish(each) for each in messages[:200]))
    flying = [bus.publish(each) for each in messages[200:]]
    await asyncio.sleep(0)
    server.kill()
    ends = await asyncio.wait_for(asyncio.gather(*flying, return_exceptions=True), 10)
    assert all(end is None or isinstance(end, PublishRetryable) for end in ends)
    assert any(isinstance(end, PublishRetryable) for end in ends), "the server was too quick for this test"
    server.restart()
    await until(lambda: bus.is_connected)
    await say(bus, messages)
    heard: list[str] = []
    while batch := await member.fetch(100, 1.0):
        for delivery in batch:
            heard.append(delivery.message.id)
            await delivery.ack()
    assert Counter(heard) == Counter(each.id for each in messages)


async def test_a_full_stream_refuses_and_heals(
    harness: JetStreamHarness, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing old is dropped for something new; who is refused may come again."""
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
    await say(harness.bus, [message()])
    assert caplog.text.count("does not take messages") == 1
    assert caplog.text.count("takes messages again") == 1


@pytest.mark.parametrize("code", [10158, 10077, 10008])
async def test_every_refusal_of_a_stream_may_pass(harness: JetStreamHarness, js: JetStreamContext, code: int) -> None:
    """Also the one that sounds like "already stored" and is not (10158: a copy is under way, without a quorum)."""

    async def refuse(msg: Msg) -> None:
        error = {"error": {"code": 400, "err_code": code, "description": "not now"}, "seq": 0}
        await msg.respond(json.dumps(error).encode())

    await js._nc.subscribe("elsewhere.>", cb=refuse)
    for _ in range(2):  # the client's first ping overtakes what it has not written yet
        await js._nc.flush()
    with pytest.raises(PublishRetryable, match=f"not now .{code}"):
        await harness.bus.publish(message(subject="elsewhere.a.v1"))


async def test_a_missing_stream_is_founded(harness: JetStreamHarness, js: JetStreamContext) -> None:
    """Nobody answers for it: that may pass, and it is looked after."""
    for info in await js.streams_info():
        await js.delete_stream(str(info.config.name))
    with pytest.raises(PublishRetryable, match="503"):
        await harness.bus.publish(message())
    await say(harness.bus, [message(), message(subject=RESERVED), message(subject="dead.inventory.orders.created.v1")])
    streams = {info.config.name: info.config.subjects for info in await js.streams_info()}
    assert streams["ORDERS"] == ["orders.>"]
    assert streams["DEAD_LETTERS"] == ["dead.>"]


async def test_what_can_never_be_sent_says_so(harness: JetStreamHarness) -> None:
    """It is not to be retried, costs nobody the connection, and is no BusError."""
    strange = [message(b"x" * 2_000_000), message(headers={"two words": "x"}), message(subject="two words")]
    ends = await asyncio.gather(*(harness.bus.publish(each) for each in strange), return_exceptions=True)
    assert [type(end) for end in ends] == [
        nats.errors.MaxPayloadError,
        nats.errors.BadHeaderError,
        nats.errors.BadSubjectError,
    ]
    await harness.bus.publish(message())
    assert harness.bus.reconnects == 0


async def test_the_headers_of_a_message_are_left_alone(harness: JetStreamHarness) -> None:
    """They belong to the caller, who may publish the same message again."""
    headers = {"ce-id": "e-1"}
    sent = message(key="order-1", headers=headers)
    await harness.bus.publish(sent)
    assert headers == {"ce-id": "e-1"}


async def test_nothing_is_spent_on_a_message(harness: JetStreamHarness) -> None:
    """A thousand on their way and a thousand in hand need no more tasks than one."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    await say(harness.bus, [message()])
    await take_one(harness, member, 5)
    before = len(asyncio.all_tasks())
    _, said = publish(harness, 1_000)
    assert len(asyncio.all_tasks()) <= before
    await asyncio.gather(*said)
    await take(harness, member, 1_000)
    assert len(asyncio.all_tasks()) <= before


# Hearing


async def test_what_comes_from_outside_has_an_id(harness: JetStreamHarness, js: JetStreamContext) -> None:
    """Its own, its event's, or else its place in the stream; foreign headers come along."""
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
async def test_a_rubbish_header_block_costs_nobody_the_connection(
    harness: JetStreamHarness, server: NatsServer, block: bytes
) -> None:
    """It is a message like others, and no word of the server either."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    writer.write(b"HPUB %s %d %d\r\n%sbody\r\nPING\r\n" % (CREATED.encode(), len(block), len(block) + 4, block))
    assert await reader.readline() == b"PONG\r\n"
    writer.close()
    delivery = await take_one(harness, member, 5)
    assert (delivery.message.body, delivery.message.id) == (b"body", "ORDERS:1")
    await delivery.term("unreadable")
    assert len(await harness.letters(1)) == 1
    assert harness.bus.reconnects == 0


async def test_a_deleted_consumer_is_founded_again(
    harness: JetStreamHarness, js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    """Also with somebody waiting; it hears everything once more, and one line says what happened."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    await say(harness.bus, [message(b"before")])
    await (await take_one(harness, member, 5)).ack()
    waiting = asyncio.create_task(member.fetch(1, 15))
    await harness.rest()
    await js.delete_consumer("ORDERS", "inventory")
    assert [each.message.body for each in await waiting] == [b"before"]
    await say(harness.bus, [message(b"after")])
    assert (await take_one(harness, member, 5)).message.body == b"after"
    assert len([each for each in caplog.records if each.levelno >= logging.WARNING]) == 1


async def test_a_deleted_stream_is_founded_again(harness: JetStreamHarness, js: JetStreamContext) -> None:
    """With its consumer; what it held is the outbox's to say again."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    await say(harness.bus, [message(b"before")])
    await (await take_one(harness, member, 5)).ack()
    waiting = asyncio.create_task(member.fetch(1, 15))
    await harness.rest()
    await js.delete_stream("ORDERS")
    await say(harness.bus, [message(b"after")])
    assert [each.message.body for each in await waiting] == [b"after"]


async def test_what_waits_here_spends_no_try(harness: JetStreamHarness) -> None:
    """Nobody fetches while the database is away; what the server had sent by then is kept ours for as long as it takes."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    assert await member.fetch(50, 0.3) == []
    publish(harness, 20)
    await until(lambda: sum(len(each.ready) for each in harness.bus._consumers()) == 20)
    await harness.pass_time((MAX_TRIES + 1) * harness.ack_wait_seconds)
    [durable] = harness.bus._consumers()
    await until(lambda: harness.monotonic() - next(iter(durable.ready.values())).touched_at > harness.ack_wait_seconds / 4)
    taken = await take(harness, member, 20)
    began = harness.monotonic()
    assert {each.tries for each in taken} == {1}
    again = await take(harness, member, 20, 2 * harness.ack_wait_seconds)
    assert {each.tries for each in again} == {2}
    assert harness.monotonic() - began > 0.85 * harness.ack_wait_seconds, "they were handed out with less than their time"


async def test_a_failing_message_keeps_its_tries_apart(harness: JetStreamHarness) -> None:
    """A nak without a delay would burn all five within milliseconds; the delay is ours to give, and is kept."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    await say(harness.bus, [message()])
    began = harness.monotonic()
    for _ in range(MAX_TRIES - 1):
        await (await take_one(harness, member, 5)).nak(0.2)
    assert (await take_one(harness, member, 5)).tries == MAX_TRIES
    assert harness.monotonic() - began >= 0.8


async def test_processes_share_the_work(harness: JetStreamHarness) -> None:
    """Members of one group in several processes get each message once between them."""
    buses = [harness.bus, await harness.another(), await harness.another()]
    members = [await bus.subscribe("inventory", [CREATED]) for bus in buses]
    sent = [message() for _ in range(300)]
    await say(harness.bus, sent)
    heard: dict[int, list[str]] = {0: [], 1: [], 2: []}

    async def work(number: int) -> None:
        while batch := await members[number].fetch(5, 1.0):
            for delivery in batch:
                heard[number].append(delivery.message.id)
                await delivery.ack()

    await asyncio.gather(*(work(number) for number in range(3)))
    assert Counter(heard[0] + heard[1] + heard[2]) == Counter(each.id for each in sent)
    assert all(heard.values())


async def test_what_a_process_held_goes_to_another_when_it_closes(server: NatsServer) -> None:
    """At once, with what was in nobody's hands yet."""
    async with JetStreamHarness.on(server.urls, ack_wait_seconds=20.0) as harness:
        leaving = await harness.another()
        member = await leaving.subscribe("inventory", [CREATED])
        assert await member.fetch(20, 0.3) == []
        await say(harness.bus, [message() for _ in range(20)])
        await until(lambda: sum(len(each.ready) for each in leaving._consumers()) == 20)
        assert len(await member.fetch(5, 5)) == 5
        staying = await harness.bus.subscribe("inventory", [CREATED])
        began = time.monotonic()
        await leaving.close(0)
        await take(harness, staying, 20)
        assert time.monotonic() - began < 5


async def test_an_idle_consumer_closes_at_once(harness: JetStreamHarness) -> None:
    """No fetch that came to nothing holds up the end; the client's own drain would hang for half a minute."""
    bus = await harness.another()
    member = await bus.subscribe("inventory", [CREATED])
    for _ in range(3):
        assert await member.fetch(10, 0.1) == []
    began = time.monotonic()
    await bus.close()
    assert time.monotonic() - began < 10
    with pytest.raises(BusClosed):
        await bus.publish(message())


# What is provisioned


async def test_drift_is_found_and_named(harness: JetStreamHarness, js: JetStreamContext) -> None:
    """Binding to what is there ignores what we would have; so we compare, field by field, and go on all the same."""
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
    await say(harness.bus, [message()])
    await (await take_one(harness, member, 5)).ack()


async def test_an_older_and_a_newer_version_share_a_durable(harness: JetStreamHarness, js: JetStreamContext) -> None:
    """The newer one hears one subject more and widens it; what the older one does not know reaches the newer, in the end."""
    older = await harness.bus.subscribe("inventory", [CREATED])
    await say(harness.bus, [message(b"1")])
    await (await take_one(harness, older, 5)).ack()
    other = await harness.another()
    newer = await other.subscribe("inventory", [CREATED, OTHER])
    await until(lambda: bool(harness.bus._consumers()))
    deadline = time.monotonic() + 10
    while (await js.consumer_info("ORDERS", "inventory")).config.filter_subjects != sorted([CREATED, OTHER]):
        assert time.monotonic() < deadline
    heard: set[str] = set()

    async def work() -> None:
        while True:
            assert await older.fetch(20, 1.0) == []

    working = asyncio.create_task(work())
    await harness.rest()
    began = time.monotonic()
    said = [message(b"new", subject=OTHER) for _ in range(10)]
    await say(harness.bus, said)
    while len(heard) < 10:
        batch = await newer.fetch(20, 15)
        assert batch
        for delivery in batch:
            heard.add(delivery.message.id)
            await delivery.ack()
    assert time.monotonic() - began < 12, "the older one stood in the way to the last"
    assert not working.done()
    working.cancel()
    assert heard == {each.id for each in said}
    third = await harness.another()
    await third.subscribe("inventory", [CREATED])
    await until(lambda: any(each.is_bound for each in third._consumers()))
    assert [*harness.bus.problems, *other.problems, *third.problems] == []
    assert await harness.letters(0) == []


async def test_who_may_not_provision_says_what_is_missing(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Least privilege: a module may speak, ask, answer and listen; founding is somebody else's, and ends the problem."""
    config = """
    accounts { A {
        jetstream: enabled
        users: [
            { user: chief, password: secret }
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
        bus = JetStreamBus(SystemClock(), Letters(), servers, name="worker")
        await bus.connect()
        member = await bus.subscribe("inventory", [CREATED])
        with pytest.raises(PublishRetryable):
            await bus.publish(message())

        def is_missed(what: str) -> bool:
            return any(what in each for each in bus.problems)

        for what in ("consumer inventory on ORDERS: ", "stream ORDERS: "):
            await until(partial(is_missed, what))

        chief = await nats.connect(server.url, user="chief", password="secret")
        stream = stream_config(StreamPlan("ORDERS", ("orders.>",)), replicas=1, dedup_seconds=120.0)
        [plan] = consumer_plans("inventory", [CREATED])
        durable = consumer_config(plan, ack_wait_seconds=bus.ack_wait_seconds, max_tries=MAX_TRIES)
        await ensure(chief.jetstream(), [stream], [("ORDERS", durable)])
        sent = message()
        await say(bus, [sent])
        [delivery] = await member.fetch(1, 30)
        assert delivery.message == sent
        await delivery.ack()
        await bus.publish(message(subject=CREATED))
        assert bus.problems == []
        forbidden = bus.publish(message(subject=RESERVED))
        await until(lambda: any("inventory.reserved.v1" in each for each in bus.problems))
        forbidden.cancel()
        await bus.close(0)
        await chief.close()


async def test_a_dead_letter_is_laid_down_before_its_message_is_let_go(harness: JetStreamHarness, js: JetStreamContext) -> None:
    """While the store is away the message stays ours, for longer than any ``ack_wait``, and then it is over."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    await say(harness.bus, [message(b"poison")])
    harness.break_letters(2)
    delivery: Delivery = await take_one(harness, member, 5)
    await delivery.term("unreadable")
    await nothing_comes(harness, member)
    assert await harness.letters(0) == []
    info = await js.consumer_info("ORDERS", "inventory")
    assert (info.num_ack_pending, info.num_redelivered) == (1, 0)
    assert len(await harness.letters(1)) == 1
    deadline = time.monotonic() + 5
    while (await js.consumer_info("ORDERS", "inventory")).num_ack_pending:
        assert time.monotonic() < deadline


async def test_a_durable_that_hears_all_of_its_stream_lacks_nothing(harness: JetStreamHarness, js: JetStreamContext) -> None:
    """No filter is every subject."""
    await js.add_consumer(
        "ORDERS",
        ConsumerConfig(durable_name="inventory", ack_wait=harness.ack_wait_seconds, max_deliver=5, max_ack_pending=1_024),
    )
    member = await harness.bus.subscribe("inventory", [CREATED])
    await say(harness.bus, [message()])
    await (await take_one(harness, member, 5)).ack()
    assert harness.bus.problems == []


async def test_a_server_is_checked_against_the_certificates_that_we_trust(tmp_path: Path) -> None:
    """Its own gets us in; without it nothing is said, and nobody is let in either who merely answers at the address."""
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    request = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext {names}"
    making = await asyncio.create_subprocess_exec(
        "openssl", *request.split(), "-keyout", key, "-out", certificate, stderr=asyncio.subprocess.DEVNULL
    )
    assert await making.wait() == 0
    config = f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}'
    with NatsServer(tmp_path / "nats", config=config) as server:
        bus = JetStreamBus(SystemClock(), Letters(), Servers(urls=server.urls, tls_ca=str(certificate)))
        await asyncio.wait_for(bus.connect(), 10)
        await say(bus, [message()])
        await bus.close(0)
        stranger = JetStreamBus(SystemClock(), Letters(), Servers(urls=server.urls), connect_seconds_max=0.5)
        with pytest.raises(BrokerUnreachable, match="certificate"):
            await stranger.connect()
        await stranger.close(0)
