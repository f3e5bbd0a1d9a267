"""A message that no worker could dead-letter is found on the server, and becomes one dead letter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import nats
import pytest
from attrs import define, field
from nats.js import JetStreamContext

from bus.ids import derived_id
from bus.jetstream.admin.provisioning import apply
from bus.jetstream.admin.topology import ADVISORIES, ConsumerPlan, Topology
from bus.jetstream.recovery.exhausted_deliveries import ExhaustedDeliveries
from bus.port import DeadLetter
from bus.subjects import replay_subject
from tests.bus.jetstream.brokers import Broker, RealBroker, SimulatedBroker

ACK_WAIT_SECONDS = 0.3
MAX_TRIES = 2
KNOWN = ("orders.created.v1", "orders.created.v2", "orders.created.v1.express")
INVENTORY = ConsumerPlan("inventory", "ORDERS", ("orders.created.v1",), 100)
ORDERS = ConsumerPlan("orders", "ORDERS", ("orders.created.v2",), 100)


@define
class InMemoryDeadLetters:
    """A store of dead store; the next *failures* attempts fail."""

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


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.slow)])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    """A simulated server on a virtual clock, which passes by itself, or a real one."""
    if request.param == "real":
        with RealBroker(tmp_path) as real:
            yield real
    else:
        async with SimulatedBroker.start_up() as simulated:
            yield simulated


@pytest.fixture
async def js(server: Broker) -> AsyncIterator[JetStreamContext]:
    """JetStream with the stream of one module and two consumers, which have two tries each."""
    client = await nats.connect(server.url)
    context = client.jetstream(timeout=2)
    planned = Topology.of(["orders"], {}).with_consumers([INVENTORY, ORDERS])
    await apply(context, planned, replicas=1, ack_wait_seconds=ACK_WAIT_SECONDS, max_tries=MAX_TRIES)
    yield context
    await client.close()


class Recover(Protocol):
    """Makes the recovery of one module, with dead letters in *store*."""

    def __call__(self, store: InMemoryDeadLetters, module: str = "inventory") -> ExhaustedDeliveries: ...


@pytest.fixture
def recover(server: Broker, js: JetStreamContext) -> Recover:
    def recovery(store: InMemoryDeadLetters, module: str = "inventory") -> ExhaustedDeliveries:
        return ExhaustedDeliveries(lambda: js, module, [INVENTORY, ORDERS], KNOWN, store, server.clock, poll_seconds=0.1)

    return recovery


async def step_until(recovery: ExhaustedDeliveries, is_so: Callable[[], Any]) -> None:
    """Step until *is_so*, for at most 20 seconds, and once more."""
    async with asyncio.timeout(30):
        while not is_so():
            await recovery.step()
    await recovery.step()


async def exhaust(js: JetStreamContext, consumer: str = "inventory") -> None:
    """
    Fetch a message as often as its tries allow, and never answer.

    The server notices that the last try is overdue at the next request: of another worker, or of this one after a
    restart.
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


async def test_a_message_whose_worker_died_on_the_last_try_becomes_one_dead_letter(js: JetStreamContext, recover: Recover) -> None:
    """
    The dead letter is as its worker would have made it, with every header of the message; and the advisory is
    acknowledged.
    """
    headers = {"Nats-Msg-Id": "m-1", "ce-id": "e-1", "ce-subject": "k-1"}
    await js.publish("orders.created.v1", b"\x00body", headers=headers)
    store = InMemoryDeadLetters()
    recovery = recover(store)
    await recovery.step()
    await exhaust(js)
    await step_until(recovery, lambda: store.kept)
    [dead_letter] = store.kept.values()
    assert (dead_letter.id, dead_letter.consumer) == (derived_id("m-1", "inventory"), "inventory")
    assert (dead_letter.error, dead_letter.attempts) == ("no_answer", MAX_TRIES)
    message = dead_letter.message
    assert (message.subject, message.id, message.key, message.body) == ("orders.created.v1", "m-1", "k-1", b"\x00body")
    assert message.headers == {"ce-id": "e-1"}
    assert dead_letter.last_seen - dead_letter.first_seen > timedelta(seconds=ACK_WAIT_SECONDS), "it was published before its tries"
    assert await open_advisories(js, "inventory") == 0
    assert store.attempts == 1


async def test_headers_are_decoded_as_for_a_worker(js: JetStreamContext, recover: Recover) -> None:
    """Even malformed headers: the dead letter has the id and the headers that a worker would have given it."""
    store = InMemoryDeadLetters()
    recovery = recover(store)
    await recovery.step()
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
    await step_until(recovery, lambda: len(store.kept) == 2)
    assert derived_id("über", "inventory") in store.kept
    for raw, dead_letter in zip(delivered, store.kept.values(), strict=True):
        headers = {name: value for name, value in (raw.headers or {}).items() if name != "Nats-Msg-Id"}
        assert dict(dead_letter.message.headers) == headers


async def test_an_advisory_that_was_published_before_the_recovery_started_is_processed(js: JetStreamContext, recover: Recover) -> None:
    """
    The server publishes an advisory once; the stream stores it. A second recovery of the same module finds nothing
    more.
    """
    await js.publish("orders.created.v1", b"{}")
    await exhaust(js)
    first, second = InMemoryDeadLetters(), InMemoryDeadLetters()
    await step_until(recover(first), lambda: first.kept)
    for _ in range(3):
        await recover(second).step()
    assert (len(first.kept), second.kept) == (1, {})


async def test_each_module_processes_the_advisories_of_its_own_consumers(js: JetStreamContext, recover: Recover) -> None:
    """The recovery of inventory ignores the advisories about orders."""
    await js.publish("orders.created.v2", b"{}")
    await exhaust(js, "orders")
    of_inventory, of_orders = InMemoryDeadLetters(), InMemoryDeadLetters()
    await step_until(recover(of_orders, "orders"), lambda: of_orders.kept)
    for _ in range(3):
        await recover(of_inventory).step()
    assert [dead_letter.consumer for dead_letter in of_orders.kept.values()] == ["orders"]
    assert of_inventory.kept == {}


async def test_an_advisory_waits_while_dead_letters_cannot_be_stored(
    js: JetStreamContext, recover: Recover, caplog: pytest.LogCaptureFixture
) -> None:
    """An unavailable database only delays it, however many attempts that takes."""
    await js.publish("orders.created.v1", b"{}")
    await exhaust(js)
    store = InMemoryDeadLetters(failures=4)
    with caplog.at_level(logging.WARNING, "bus.jetstream.recovery.exhausted_deliveries"):
        await step_until(recover(store), lambda: store.kept)
    assert (store.attempts, len(store.kept)) == (5, 1)
    assert await open_advisories(js, "inventory") == 0
    assert [record.getMessage() for record in caplog.records if "is interrupted" in record.getMessage()]


async def test_an_advisory_about_a_deleted_message_is_logged_and_acknowledged(js: JetStreamContext, recover: Recover, caplog: pytest.LogCaptureFixture) -> None:
    """There is nothing left to dead-letter."""
    ack = await js.publish("orders.created.v1", b"{}")
    store = InMemoryDeadLetters()
    recovery = recover(store)
    await recovery.step()
    await exhaust(js)
    await js.delete_msg("ORDERS", ack.seq)
    await js._nc.publish("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.ORDERS.inventory", _advisory(ack.seq))
    await step_until(recovery, lambda: "is gone from the stream" in caplog.text)
    assert store.kept == {}
    assert await open_advisories(js, "inventory") == 0


async def test_an_unreadable_advisory_is_skipped(js: JetStreamContext, recover: Recover, caplog: pytest.LogCaptureFixture) -> None:
    """It is terminated, and the next one is processed."""
    store = InMemoryDeadLetters()
    recovery = recover(store)
    for body in (b"", b"{", b"[]", b"{}", b'{"stream": 1}', b"\xff"):
        await js.publish("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.ORDERS.inventory", body)
    await js.publish("orders.created.v1", b"{}")
    await exhaust(js)
    await step_until(recovery, lambda: store.kept)
    assert await open_advisories(js, "inventory") == 0
    assert caplog.text.count("an advisory is unreadable") == 6


async def test_a_message_on_an_unknown_subject_becomes_a_dead_letter(js: JetStreamContext, recover: Recover) -> None:
    """Once, with the module's ``-strays`` as its consumer; known subjects and replays are ignored."""
    store = InMemoryDeadLetters()
    recovery = recover(store, "orders")
    for subject in (*KNOWN, replay_subject("orders", "inventory.reserved.v1")):
        await js.publish(subject, b"{}")
    await recovery.step()
    assert store.kept == {}
    await js.publish("orders.created.v99", b"?", headers={"Nats-Msg-Id": "m-1", "ce-id": "e-1"})
    await js.publish("orders.nonsense.v1", b"??")
    await asyncio.sleep(0.3)
    await step_until(recovery, lambda: len(store.kept) >= 2)
    assert all(each.last_seen - each.first_seen > timedelta(seconds=0.2) for each in store.kept.values())
    assert store.subjects() == ["orders.created.v99", "orders.nonsense.v1"]
    dead_letter = store.kept[derived_id("m-1", "orders-strays")]
    assert (dead_letter.consumer, dead_letter.error, dead_letter.attempts) == ("orders-strays", "unknown_subject", 1)
    assert "orders.created.v99" in dead_letter.detail
    assert (dead_letter.message.body, dead_letter.message.headers) == (b"?", {"ce-id": "e-1"})
    await recover(store, "orders").step()
    assert store.attempts == 2


async def test_a_new_unknown_subject_is_processed_from_its_first_message(js: JetStreamContext, recover: Recover) -> None:
    """Also if the durable is past it: a durable delivers an added subject from its current position on only."""
    store = InMemoryDeadLetters()
    recovery = recover(store, "orders")
    await js.publish("orders.a.v1", b"1")
    await step_until(recovery, lambda: len(store.kept) == 1)
    await js.publish("orders.b.v1", b"2")
    await js.publish("orders.a.v1", b"3")
    subscription = await js.pull_subscribe_bind("orders-strays", stream="ORDERS")
    [behind] = await subscription.fetch(1, timeout=5)  # another process has read on, and does not know the subject of b
    assert behind.data == b"3"
    await behind.ack_sync()
    await js.publish("orders.b.v1", b"4")
    await asyncio.sleep(0.3)
    await step_until(recovery, lambda: len(store.kept) >= 3)
    late = [each for each in store.kept.values() if each.message.body == b"2"]
    assert late[0].last_seen - late[0].first_seen > timedelta(seconds=0.2)
    assert sorted(dead_letter.message.body for dead_letter in store.kept.values()) == [b"1", b"2", b"4"]


async def test_a_subject_that_is_known_now_is_left_to_its_consumers(js: JetStreamContext, recover: Recover, monkeypatch: pytest.MonkeyPatch) -> None:
    """The durable of an older version still delivers it: the message is no dead letter beside that."""
    store = InMemoryDeadLetters()
    await js.publish("orders.later.v1", b"1")
    await step_until(recover(store, "orders"), lambda: store.kept)
    monkeypatch.setattr(f"{__name__}.KNOWN", (*KNOWN, "orders.later.v1"))
    await js.publish("orders.later.v1", b"2")
    await js.publish("orders.nonsense.v1", b"3")
    await step_until(recover(store, "orders"), lambda: len(store.kept) >= 2)
    assert sorted(dead_letter.message.body for dead_letter in store.kept.values()) == [b"1", b"3"]


async def test_too_many_unknown_subjects_do_not_hide_the_first_ones(
    js: JetStreamContext, recover: Recover, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are a fault of the publisher, and logged as one."""
    monkeypatch.setattr("bus.jetstream.recovery.unroutable.SUBJECTS_MAX", 2)
    store = InMemoryDeadLetters()
    for name in "a", "b", "c":
        await js.publish(f"orders.{name}.v1", b"{}")
    await step_until(recover(store, "orders"), lambda: len(store.kept) == 2)
    assert store.subjects() == ["orders.a.v1", "orders.b.v1"]
    assert "holds 3 unknown subjects" in caplog.text


async def test_versions_with_different_consumers_share_the_durable_of_the_advisories(js: JetStreamContext, server: Broker) -> None:
    """Each adds the subjects that it needs, and takes none away; streams that are missing are created, and no fetch leaves anything behind."""
    newer = [INVENTORY, ConsumerPlan("inventory-new", "ORDERS", ("orders.created.v1",), 100)]
    await js.delete_stream("DEAD_LETTERS")
    before = len(js._nc._subs)
    for consumers in newer, [INVENTORY], newer[1:]:
        recovery = ExhaustedDeliveries(lambda: js, "inventory", consumers, KNOWN, InMemoryDeadLetters(), server.clock, poll_seconds=0.1)
        for _ in range(3):
            await recovery.step()
        info = await js.consumer_info(ADVISORIES, "patrol-inventory")
        names = {subject.rpartition(".")[2] for subject in info.config.filter_subjects or [info.config.filter_subject or ""]}
        assert names == {"inventory", "inventory-new"}
    assert (await js.stream_info("DEAD_LETTERS")).config.name == "DEAD_LETTERS"
    assert len(js._nc._subs) <= before + 1


async def test_an_unknown_version_of_an_event_that_has_a_known_one_is_ignored(js: JetStreamContext, recover: Recover) -> None:
    """A publisher of the next release publishes the event in both versions."""
    store = InMemoryDeadLetters()
    recovery = recover(store, "orders")
    await js.publish("orders.created.v3", b"{}", headers={"ce-versions": "v2,v3"})
    await js.publish("orders.created.v3.express", b"{}", headers={"ce-versions": "v1, v3"})
    await js.publish("orders.created.v3", b"alone", headers={"ce-versions": "v3,v4"})
    await step_until(recovery, lambda: store.kept)
    assert [dead_letter.message.body for dead_letter in store.kept.values()] == [b"alone"]
    info = await js.consumer_info("ORDERS", "orders-strays")
    assert (info.num_pending, info.num_ack_pending) == (0, 0)


async def test_unroutable_messages_wait_while_dead_letters_cannot_be_stored(js: JetStreamContext, recover: Recover) -> None:
    """They are redelivered until each is stored."""
    store = InMemoryDeadLetters(failures=3)
    for n in range(5):
        await js.publish("orders.nonsense.v1", b"%d" % n)
    await step_until(recover(store, "orders"), lambda: len(store.kept) == 5)
    assert sorted(dead_letter.message.body for dead_letter in store.kept.values()) == [b"0", b"1", b"2", b"3", b"4"]


async def test_the_recovery_survives_a_restart_of_the_server(server: Broker, js: JetStreamContext, recover: Recover) -> None:
    """It finds afterwards what it would have found before; a durable that was deleted is created again."""
    store = InMemoryDeadLetters()
    recovery = recover(store, "orders")
    await recovery.step()
    await js.publish("orders.nonsense.v1", b"1")
    server.kill()
    await recovery.step()
    assert store.kept == {}
    server.start()
    await step_until(recovery, lambda: store.kept)
    await js.delete_consumer(ADVISORIES, "patrol-orders")
    await js.publish("orders.created.v2", b"2")
    await exhaust(js, "orders")
    await step_until(recovery, lambda: len(store.kept) == 2)


def _advisory(sequence: int) -> bytes:
    return b'{"stream": "ORDERS", "consumer": "inventory", "stream_seq": %d, "deliveries": 5}' % sequence
