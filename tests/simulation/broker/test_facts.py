"""The simulated server has the habits of a real one that the program has to survive."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from bus.errors import PublishRetryable
from bus.jetstream.bus import PUBLISH_SECONDS
from bus.port import MAX_TRIES, Bus, Message, Subscription
from tests.bus.contract import CREATED, message, publish, take, take_one
from tests.simulation.broker.harness import SimulatedHarness
from tests.simulation.broker.stream import Stream
from tests.simulation.broker.wire import headers_of

ACK_WAIT_SECONDS = 30.0


@pytest.fixture
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[SimulatedHarness]:
    """A bus with the times of production."""
    async with SimulatedHarness.start(
        random.Random(1), ack_wait_seconds=ACK_WAIT_SECONDS, dedup_seconds=120.0, patience_seconds=10.0
    ) as harness:
        yield harness


def orders(harness: SimulatedHarness) -> Stream:
    return harness.server.jetstream.streams["ORDERS"]


def id_of(stream: Stream, sequence: int) -> str:
    """Return the id under which a message was stored."""
    return headers_of(stream.messages[sequence].head)["Nats-Msg-Id"]


async def publish_until_stored(harness: SimulatedHarness, sent: Message, bus: Bus | None = None) -> int:
    """Publish *sent* as the outbox relay does, until it is stored; return the number of failures."""
    for failures in range(1_000):
        try:
            await (bus or harness.bus).publish(sent)
        except PublishRetryable:
            await harness.clock.sleep(0.25)
        else:
            return failures
    raise AssertionError("it is never stored")


async def bodies(harness: SimulatedHarness, member: Subscription, count: int) -> list[bytes]:
    taken = await take(harness, member, count)
    for delivery in taken:
        await delivery.ack()
    return [each.message.body for each in taken]


async def test_a_publish_that_has_timed_out_may_be_stored_later(harness: SimulatedHarness) -> None:
    """What reaches a stream without a leader is lost, refused, or stored later; published again, it is there once."""
    outcomes = set()
    for n in range(12):
        harness.server.jetstream.lose_leader(PUBLISH_SECONDS + 2)
        published = harness.bus.publish(message(str(n).encode()))
        with pytest.raises(PublishRetryable) as raised:
            await harness.run(published)
        await harness.pass_time(PUBLISH_SECONDS + 2)
        outcomes.add(("no answer" in str(raised.value), orders(harness).last_sequence > 0))
        orders(harness).lose_tail(1)
    assert outcomes == {(True, True), (True, False), (False, False)}


async def test_a_message_is_stored_once_however_often_it_is_published(harness: SimulatedHarness) -> None:
    """While the first copy waits for a leader, the others are refused, and later the stream knows the id."""
    jetstream, failures = harness.server.jetstream, 0
    for n in range(20):
        jetstream.lose_leader(PUBLISH_SECONDS + 2)
        failures += await harness.run(publish_until_stored(harness, message(str(n).encode())))
    assert [each.body for each in orders(harness).messages.values()] == [str(n).encode() for n in range(20)]
    assert failures > 20


async def test_an_id_in_process_is_no_duplicate_yet(harness: SimulatedHarness) -> None:
    """The error 10158 is to be retried: the first copy may still be lost."""
    sent, reasons = message(b"1"), []
    harness.server.jetstream.lose_leader(60)
    for _ in range(6):
        with pytest.raises(PublishRetryable) as raised:
            await harness.run(harness.bus.publish(sent))
        reasons.append(str(raised.value))
    assert "(10158)" in reasons[-1]


async def test_a_lost_leader_may_take_the_last_messages_with_it(harness: SimulatedHarness) -> None:
    """Acknowledged messages that were not on the disk are gone, their sequences are used again, their ids are unknown."""
    sent, published = publish(harness, 5)
    await harness.run(asyncio.gather(*published))
    harness.server.jetstream.lose_leader(1, tail=2)
    await harness.pass_time(2)
    assert [each.body for each in orders(harness).messages.values()] == [b"0", b"1", b"2"]
    await harness.run(publish_until_stored(harness, sent[4]))
    assert [(each.sequence, each.body) for each in orders(harness).messages.values()][3:] == [(4, b"4")]
    assert id_of(orders(harness), 4) == sent[4].id


async def test_a_lost_leader_may_take_the_last_acknowledgements_with_it(harness: SimulatedHarness) -> None:
    """Messages that were acknowledged are delivered again, as another try."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    publish(harness, 3)
    assert await bodies(harness, member, 3) == [b"0", b"1", b"2"]
    await harness.rest()
    harness.server.jetstream.lose_leader(1, acks=2)
    again = await take(harness, member, 2)
    assert {(each.message.body, each.tries) for each in again} == {(b"1", 2), (b"2", 2)}


async def test_the_acknowledgement_of_a_lost_message_is_lost_with_it(harness: SimulatedHarness) -> None:
    """Another message gets its sequence; a later leader that has lost acknowledgements must not take that for delivered."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    publish(harness, 3)
    await bodies(harness, member, 3)
    await harness.rest()
    (consumer,) = (each for each in harness.server.jetstream.consumers.values() if each.name == "inventory")
    assert list(consumer.acked) == [1, 2, 3]
    harness.server.jetstream.lose_leader(1, tail=1)
    await harness.pass_time(2)
    assert list(consumer.acked) == [1, 2]


async def test_a_stream_knows_the_ids_of_what_was_purged(harness: SimulatedHarness) -> None:
    """Within the window a purged message is not stored again, which the publisher notices and gives it another id."""
    sent = message(b"purged")
    await harness.run(harness.bus.publish(sent))
    orders(harness).purge()
    await harness.run(harness.bus.publish(sent))
    assert id_of(orders(harness), 2).startswith(f"{sent.id}.")


async def test_a_stream_forgets_an_id_after_the_window(harness: SimulatedHarness) -> None:
    """The same message is then stored twice, under one id."""
    sent = message()
    for _ in range(2):
        await harness.run(harness.bus.publish(sent))
        await harness.pass_time(harness.dedup_seconds)
    assert [id_of(orders(harness), sequence) for sequence in (1, 2)] == [sent.id, sent.id]


async def test_a_full_stream_takes_messages_again_later(harness: SimulatedHarness) -> None:
    """A full stream refuses; nothing that it has stored is lost."""
    orders(harness).config["max_msgs"] = 1
    await harness.run(harness.bus.publish(message(b"1")))
    with pytest.raises(PublishRetryable, match="10077"):
        await harness.run(harness.bus.publish(message(b"2")))
    orders(harness).config["max_msgs"] = -1
    await harness.run(harness.bus.publish(message(b"2")))
    assert len(orders(harness).messages) == 2


async def test_a_deleted_durable_is_made_again(harness: SimulatedHarness) -> None:
    """The new one delivers all of the stream again."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    publish(harness, 2)
    assert await bodies(harness, member, 2) == [b"0", b"1"]
    waiting = asyncio.ensure_future(member.fetch(1, 30))
    await harness.rest()
    harness.server.jetstream.delete_consumer("ORDERS", "inventory")
    deleted_at = harness.monotonic()
    [first] = await harness.run(waiting)
    assert (first.message.body, first.tries) == (b"0", 1)
    assert harness.monotonic() - deleted_at < 1, "the server ends the requests for it"


async def test_a_deleted_stream_is_made_again_once_its_files_are_gone(harness: SimulatedHarness) -> None:
    """One that is created while the server still deletes the old one never stores a message."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    await harness.run(harness.bus.publish(message(b"1")))
    await (await take_one(harness, member)).ack()
    harness.server.jetstream.delete_stream("ORDERS")
    await harness.run(publish_until_stored(harness, message(b"2")))
    assert [each.body for each in orders(harness).messages.values()] == [b"2"]
    assert (await take_one(harness, member, 60)).message.body == b"2"


async def test_a_process_that_only_publishes_makes_a_deleted_stream_again_as_late(harness: SimulatedHarness) -> None:
    """It knows the stream from what the stream has stored."""
    bus = await harness.another("publisher", streams=["ORDERS"])
    await harness.run(publish_until_stored(harness, message(b"1"), bus))
    await harness.run(harness.bus.close(0))
    for stored in b"2", b"3":
        harness.server.jetstream.delete_stream("ORDERS")
        await harness.run(publish_until_stored(harness, message(stored), bus))
        assert [each.body for each in orders(harness).messages.values()] == [stored]
        await harness.pass_time(60)


@pytest.mark.parametrize("is_consumer", [True, False])
async def test_a_process_that_starts_while_there_is_no_leader_makes_a_deleted_stream_again_as_late(
    harness: SimulatedHarness, is_consumer: bool
) -> None:
    """It has never seen the stream, but looks or publishes without an answer show that the stream may have existed."""
    await harness.run(harness.bus.publish(message(b"1")))
    await harness.run(harness.bus.close(0))
    jetstream = harness.server.jetstream
    jetstream.lose_leader(20)
    bus = await harness.another("process", streams=["ORDERS"])
    if is_consumer:
        subscribing = asyncio.ensure_future(bus.subscribe("inventory", [CREATED]))
    else:
        storing = asyncio.ensure_future(publish_until_stored(harness, message(b"2"), bus))
    await harness.pass_time(15)
    jetstream.delete_stream("ORDERS")
    jetstream._elect(0, 0)
    if is_consumer:
        await harness.run(subscribing)
        storing = asyncio.ensure_future(publish_until_stored(harness, message(b"2"), bus))
    await harness.run(storing)
    assert [each.body for each in orders(harness).messages.values()] == [b"2"]


async def test_five_naks_without_a_delay_take_no_time(harness: SimulatedHarness) -> None:
    """All tries are used up at once, whatever ``ack_wait`` is."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    harness.bus.publish(message())
    for _ in range(MAX_TRIES):
        await (await take_one(harness, member)).nak(0)
    assert len(await harness.dead_letters(1)) == 1
    assert harness.monotonic() < 1


async def test_messages_are_redelivered_in_no_order(harness: SimulatedHarness) -> None:
    """A random generator decides, unless the order is to be kept."""
    harness.server.jetstream._keeps_order = False
    member = await harness.bus.subscribe("inventory", [CREATED])
    publish(harness, 20)
    for delivery in await take(harness, member, 20):
        await delivery.nak(1)
    again = await bodies(harness, member, 20)
    assert sorted(again) == sorted(str(n).encode() for n in range(20))
    assert again != [str(n).encode() for n in range(20)]


async def test_a_silent_link_is_noticed_by_pings_and_used_again(harness: SimulatedHarness) -> None:
    """What was sent meanwhile may arrive after the link is healed, and then the publish is repeated: it is stored once."""
    link = harness.network.link("first")
    link.silence(up=False)
    sent = message(b"1")
    published = harness.bus.publish(sent)
    with pytest.raises(PublishRetryable):
        await harness.run(published)
    assert len(orders(harness).messages) == 1, "only the answer is lost"
    await harness.pass_time(30)
    connected = [harness.bus.is_connected]
    link.heal()
    await harness.run(publish_until_stored(harness, sent))
    assert [*connected, harness.bus.is_connected] == [False, True]
    assert len(orders(harness).messages) == 1


async def test_a_cut_link_ends_what_is_in_flight_at_once(harness: SimulatedHarness) -> None:
    """Both ends notice; the client connects again once it can."""
    published = harness.bus.publish(message(b"1"))
    link = harness.network.link("first")
    await harness.clock.settle()
    link.cut()
    with pytest.raises(PublishRetryable):
        await harness.run(published)
    assert harness.monotonic() < 0.1
    await harness.pass_time(5)
    connected = [harness.bus.is_connected]
    link.heal()
    await harness.pass_time(5)
    assert [*connected, harness.bus.is_connected] == [False, True]


async def test_a_lost_message_costs_one_time_out(harness: SimulatedHarness) -> None:
    """Requests and answers are lost between two servers, and the connection of the client stays."""
    harness.server.jetstream.loss_rate = 0.3
    failures = sum([await harness.run(publish_until_stored(harness, message(str(n).encode()))) for n in range(20)])
    assert failures > 3
    assert [each.body for each in orders(harness).messages.values()] == [str(n).encode() for n in range(20)]
    assert harness.bus.reconnects == 0


@pytest.mark.parametrize("refill", [0, 5], ids=["shorter", "as long as before"])
async def test_a_publisher_notices_that_its_stream_has_lost_the_last_messages(harness: SimulatedHarness, refill: int) -> None:
    """Although the stream is as planned, and may be as long as before; it knows since when, and an intact stream is left alone."""
    bus = await harness.another("publisher", streams=["ORDERS"])
    times = []
    for _ in range(5):
        times.append(harness.clock.now())
        await harness.run(bus.publish(message()))
        await harness.pass_time(20)
    assert bus.stored_marks.lost_since == {}
    harness.server.jetstream.lose_leader(1, tail=2)
    await harness.pass_time(1.5)
    for _ in range(refill):
        await harness.run(bus.publish(message()))
    await harness.pass_time(15)
    since = bus.stored_marks.lost_since["ORDERS"]
    assert times[0] < since <= times[3] + timedelta(seconds=1)
    bus.stored_marks.forget("ORDERS", since)
    await harness.pass_time(15)
    assert bus.stored_marks.lost_since == {}


async def test_a_process_that_has_published_nothing_notices_the_loss_too(harness: SimulatedHarness) -> None:
    """It remembers the last message of the stream at its start: another process has published that, and has ended since."""
    await harness.run(harness.bus.publish(message()))
    bus = await harness.another("publisher", streams=["ORDERS"])
    await harness.pass_time(15)
    harness.server.jetstream.lose_leader(1, tail=1)
    await harness.pass_time(15)
    assert list(bus.stored_marks.lost_since) == ["ORDERS"]
