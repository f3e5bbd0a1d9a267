"""What no worker could lay down itself is found on the server, and becomes one dead letter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from attrs import define, field
from nats.js import JetStreamContext

from app.clock import SystemClock
from bus.ids import derived_id
from bus.jetstream.admin.provisioning import apply
from bus.jetstream.admin.topology import ADVISORIES, ConsumerPlan, Topology
from bus.jetstream.recovery.exhausted_deliveries import ExhaustedDeliveries
from bus.port import DeadLetter
from bus.replay_subjects import replay_subject
from tests.nats import NatsServer

pytestmark = pytest.mark.slow

ACK_WAIT_SECONDS = 0.3
MAX_TRIES = 2
KNOWN = ("orders.created.v1", "orders.created.v2", "orders.created.v1.express")
INVENTORY = ConsumerPlan("inventory", "ORDERS", ("orders.created.v1",), 100)
ORDERS = ConsumerPlan("orders", "ORDERS", ("orders.created.v2",), 100)


@define
class Letters:
    """Dead letters in memory, one for each id; *failures* of the next attempts fail."""

    kept: dict[str, DeadLetter] = field(factory=dict)
    attempts: int = 0
    failures: int = 0

    async def add(self, dead_letter: DeadLetter) -> None:
        self.attempts += 1
        if self.failures:
            self.failures -= 1
            raise OSError("the disk is full")
        self.kept.setdefault(dead_letter.id, dead_letter)

    def subjects(self) -> list[str]:
        return sorted(dead_letter.message.subject for dead_letter in self.kept.values())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        yield server


@pytest.fixture
async def js(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    """JetStream with the streams of two modules and a consumer of each, who is given two tries."""
    client = await nats.connect(server.url)
    context = client.jetstream(timeout=2)
    planned = Topology.of(["orders"], {}).with_consumers([INVENTORY, ORDERS])
    await apply(context, planned, replicas=1, ack_wait_seconds=ACK_WAIT_SECONDS, max_tries=MAX_TRIES)
    yield context
    await client.close()


def patrol_of(js: JetStreamContext, letters: Letters, module: str = "inventory", **more: Any) -> ExhaustedDeliveries:
    return ExhaustedDeliveries(lambda: js, module, [INVENTORY, ORDERS], KNOWN, letters, SystemClock(), poll_seconds=0.1, **more)


async def walk(patrol: ExhaustedDeliveries, is_so: Callable[[], Any]) -> None:
    """Walk rounds until *is_so*, which has to be soon, and one more."""
    async with asyncio.timeout(20):
        while not is_so():
            await patrol.step()
    await patrol.step()


async def exhaust(js: JetStreamContext, consumer: str = "inventory") -> None:
    """
    Fetch a message as often as it may be, and die with it each time.

    The server notices when somebody wants more: another worker, or the same one after its restart.
    """
    subscription = await js.pull_subscribe_bind(consumer, stream="ORDERS")
    for _ in range(MAX_TRIES):
        await subscription.fetch(1, timeout=5)
    with pytest.raises(TimeoutError):
        await subscription.fetch(1, timeout=3 * ACK_WAIT_SECONDS)
    await subscription.unsubscribe()


async def open_advisories(js: JetStreamContext, module: str) -> int:
    info = await js.consumer_info(ADVISORIES, f"patrol-{module}")
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


async def test_a_message_whose_worker_died_on_the_last_try_becomes_one_dead_letter(js: JetStreamContext) -> None:
    """As its worker would have made it, with whatever the message had on it; and the advisory is done with."""
    headers = {"Nats-Msg-Id": "m-1", "ce-id": "e-1", "ce-subject": "k-1"}
    await js.publish("orders.created.v1", b"\x00body", headers=headers)
    letters = Letters()
    patrol = patrol_of(js, letters)
    await patrol.step()
    await exhaust(js)
    await walk(patrol, lambda: letters.kept)
    [dead_letter] = letters.kept.values()
    assert (dead_letter.id, dead_letter.consumer) == (derived_id("m-1", "inventory"), "inventory")
    assert (dead_letter.error, dead_letter.attempts) == ("no_answer", MAX_TRIES)
    message = dead_letter.message
    assert (message.subject, message.id, message.key, message.body) == ("orders.created.v1", "m-1", "k-1", b"\x00body")
    assert message.headers == {"ce-id": "e-1"}
    assert dead_letter.first_seen <= dead_letter.last_seen
    assert await open_advisories(js, "inventory") == 0
    assert letters.attempts == 1


async def test_headers_in_any_language_come_out_as_a_worker_would_see_them(js: JetStreamContext) -> None:
    """Also where they are no good: the letter has the id and the headers that the worker would have given it."""
    letters = Letters()
    patrol = patrol_of(js, letters)
    await patrol.step()
    await js.publish("orders.created.v1", b"{}", headers={"ce-id": "grün", "Nats-Msg-Id": "über", "note": "a: b=?utf-8?q?c?="})
    block = b"NATS/1.0\r\nno colon\r\nbad: \xff\r\n\xff: bad\r\ntwice: 1\r\ntwice: 2\r\n\r\n"
    assert js._nc._transport is not None
    js._nc._transport.write(b"HPUB orders.created.v1 %d %d\r\n%b{}\r\n" % (len(block), len(block) + 2, block))
    await js._nc.flush()
    subscription = await js.pull_subscribe_bind("inventory", stream="ORDERS")
    delivered = [(await subscription.fetch(1, timeout=5))[0] for _ in range(2 * MAX_TRIES)][:2]
    with pytest.raises(TimeoutError):
        await subscription.fetch(1, timeout=3 * ACK_WAIT_SECONDS)
    await subscription.unsubscribe()
    await walk(patrol, lambda: len(letters.kept) == 2)
    assert derived_id("über", "inventory") in letters.kept
    for raw, dead_letter in zip(delivered, letters.kept.values(), strict=True):
        headers = {name: value for name, value in (raw.headers or {}).items() if name != "Nats-Msg-Id"}
        assert dict(dead_letter.message.headers) == headers


async def test_what_happened_while_no_patrol_walked_is_found_later(js: JetStreamContext) -> None:
    """An advisory is said once; the stream keeps it. A second patrol of the same module finds nothing more."""
    await js.publish("orders.created.v1", b"{}")
    await exhaust(js)
    first, second = Letters(), Letters()
    await walk(patrol_of(js, first), lambda: first.kept)
    for _ in range(3):
        await patrol_of(js, second).step()
    assert (len(first.kept), second.kept) == (1, {})


async def test_each_module_looks_after_its_own_consumers(js: JetStreamContext) -> None:
    """What orders gave up on is no business of inventory."""
    await js.publish("orders.created.v2", b"{}")
    await exhaust(js, "orders")
    theirs, ours = Letters(), Letters()
    await walk(patrol_of(js, ours, "orders"), lambda: ours.kept)
    for _ in range(3):
        await patrol_of(js, theirs).step()
    assert [dead_letter.consumer for dead_letter in ours.kept.values()] == ["orders"]
    assert theirs.kept == {}


async def test_an_advisory_waits_for_dead_letters_that_cannot_be_kept(
    js: JetStreamContext, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that is away costs nothing but time, however many attempts it takes."""
    await js.publish("orders.created.v1", b"{}")
    await exhaust(js)
    letters = Letters(failures=4)
    with caplog.at_level(logging.WARNING, "bus.jetstream.recovery.exhausted_deliveries"):
        await walk(patrol_of(js, letters), lambda: letters.kept)
    assert (letters.attempts, len(letters.kept)) == (5, 1)
    assert await open_advisories(js, "inventory") == 0
    assert [record.getMessage() for record in caplog.records if "is interrupted" in record.getMessage()]


async def test_a_message_that_is_gone_is_told_and_done_with(js: JetStreamContext, caplog: pytest.LogCaptureFixture) -> None:
    """There is nothing left to lay down, and nothing to wait for."""
    ack = await js.publish("orders.created.v1", b"{}")
    letters = Letters()
    patrol = patrol_of(js, letters)
    await patrol.step()
    await exhaust(js)
    await js.delete_msg("ORDERS", ack.seq)
    await js._nc.publish("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.ORDERS.inventory", _advisory(ack.seq))
    await walk(patrol, lambda: "is gone from the stream" in caplog.text)
    assert letters.kept == {}
    assert await open_advisories(js, "inventory") == 0


async def test_rubbish_among_the_advisories_stops_nobody(js: JetStreamContext, caplog: pytest.LogCaptureFixture) -> None:
    """It is thrown away, and the next one is read."""
    letters = Letters()
    patrol = patrol_of(js, letters)
    for rubbish in (b"", b"{", b"[]", b"{}", b'{"stream": 1}', b"\xff"):
        await js.publish("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.ORDERS.inventory", rubbish)
    await js.publish("orders.created.v1", b"{}")
    await exhaust(js)
    await walk(patrol, lambda: letters.kept)
    assert await open_advisories(js, "inventory") == 0
    assert caplog.text.count("an advisory is unreadable") == 6


async def test_a_subject_that_nobody_knows_becomes_a_dead_letter(js: JetStreamContext) -> None:
    """In the name of the module's strays, once; what is known, and the replays, are left alone."""
    letters = Letters()
    patrol = patrol_of(js, letters, "orders")
    for subject in (*KNOWN, replay_subject("orders", "inventory.reserved.v1")):
        await js.publish(subject, b"{}")
    await patrol.step()
    assert letters.kept == {}
    await js.publish("orders.created.v99", b"?", headers={"Nats-Msg-Id": "m-1", "ce-id": "e-1"})
    await js.publish("orders.nonsense.v1", b"??")
    await walk(patrol, lambda: len(letters.kept) >= 2)
    assert letters.subjects() == ["orders.created.v99", "orders.nonsense.v1"]
    dead_letter = letters.kept[derived_id("m-1", "orders-strays")]
    assert (dead_letter.consumer, dead_letter.error, dead_letter.attempts) == ("orders-strays", "unknown_subject", 1)
    assert "orders.created.v99" in dead_letter.detail
    assert (dead_letter.message.body, dead_letter.message.headers) == (b"?", {"ce-id": "e-1"})
    await patrol_of(js, letters, "orders").step()
    assert letters.attempts == 2


async def test_a_new_unknown_subject_is_heard_from_its_first_message(js: JetStreamContext) -> None:
    """Also where the durable has gone past it: it hears a subject only from where it stands when it is told to."""
    letters = Letters()
    patrol = patrol_of(js, letters, "orders")
    await js.publish("orders.a.v1", b"1")
    await walk(patrol, lambda: len(letters.kept) == 1)
    await js.publish("orders.b.v1", b"2")
    await js.publish("orders.a.v1", b"3")
    subscription = await js.pull_subscribe_bind("orders-strays", stream="ORDERS")
    [behind] = await subscription.fetch(1, timeout=5)  # another process was quicker, and has not heard of b
    assert behind.data == b"3"
    await behind.ack_sync()
    await js.publish("orders.b.v1", b"4")
    await walk(patrol, lambda: len(letters.kept) >= 3)
    assert sorted(dead_letter.message.body for dead_letter in letters.kept.values()) == [b"1", b"2", b"4"]


async def test_an_unknown_version_of_what_is_also_said_in_a_known_one_is_left_alone(js: JetStreamContext) -> None:
    """Whoever publishes for the next release, too, has said it to us in our own words."""
    letters = Letters()
    patrol = patrol_of(js, letters, "orders")
    await js.publish("orders.created.v3", b"{}", headers={"ce-versions": "v2,v3"})
    await js.publish("orders.created.v3.express", b"{}", headers={"ce-versions": "v1, v3"})
    await js.publish("orders.created.v3", b"alone", headers={"ce-versions": "v3,v4"})
    await walk(patrol, lambda: letters.kept)
    assert [dead_letter.message.body for dead_letter in letters.kept.values()] == [b"alone"]
    info = await js.consumer_info("ORDERS", "orders-strays")
    assert (info.num_pending, info.num_ack_pending) == (0, 0)


async def test_strays_wait_for_dead_letters_that_cannot_be_kept(js: JetStreamContext) -> None:
    """And come again until each is kept."""
    letters = Letters(failures=3)
    for n in range(5):
        await js.publish("orders.nonsense.v1", b"%d" % n)
    await walk(patrol_of(js, letters, "orders"), lambda: len(letters.kept) == 5)
    assert sorted(dead_letter.message.body for dead_letter in letters.kept.values()) == [b"0", b"1", b"2", b"3", b"4"]


async def test_the_patrol_outlives_its_server(server: NatsServer, js: JetStreamContext) -> None:
    """And finds afterwards what it would have found; a durable that somebody has deleted is founded again."""
    letters = Letters()
    patrol = patrol_of(js, letters, "orders")
    await patrol.step()
    await js.publish("orders.nonsense.v1", b"1")
    server.kill()
    await patrol.step()
    assert letters.kept == {}
    server.start()
    await walk(patrol, lambda: letters.kept)
    await js.delete_consumer(ADVISORIES, "patrol-orders")
    await js.publish("orders.created.v2", b"2")
    await exhaust(js, "orders")
    await walk(patrol, lambda: len(letters.kept) == 2)


def _advisory(sequence: int) -> bytes:
    return b'{"stream": "ORDERS", "consumer": "inventory", "stream_seq": %d, "deliveries": 5}' % sequence
