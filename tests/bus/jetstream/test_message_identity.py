"""What the server says about a message is acted upon only once the message itself is safe."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from nats.js import JetStreamContext

from app.clock import SystemClock
from bus.jetstream.admin.topology import ConsumerPlan
from bus.jetstream.pull_consumer import PullConsumer
from bus.jetstream.recovery.exhausted_deliveries import ExhaustedDeliveries
from bus.port import DeadLetter, Message
from tests.bus.contract import CREATED
from tests.bus.jetstream.harness import JetStreamHarness


class Advisory:
    """The advisory about a last try, as a message that records how it is settled."""

    def __init__(self, done: list[str]) -> None:
        self.data = json.dumps({"stream": "ORDERS", "consumer": "inventory", "stream_seq": 7, "deliveries": 5}).encode()
        self._done = done

    async def ack_sync(self) -> None:
        self._done.append("acknowledged")

    async def nak(self, delay: float) -> None:
        self._done.append("redelivered")


class Store:
    """A store of dead letters that may fail."""

    def __init__(self, done: list[str], fails: bool) -> None:
        self._done, self._fails = done, fails

    async def add(self, dead_letter: DeadLetter) -> None:
        if self._fails:
            raise OSError("the disk is full")
        self._done.append(f"stored {dead_letter.message.subject} {dead_letter.error}")


@pytest.mark.parametrize("fails", [False, True])
async def test_an_advisory_is_acknowledged_once_its_dead_letter_is_stored(fails: bool) -> None:
    """Otherwise it is delivered again: the advisory is all that is left of a worker that died on the last try."""

    async def get_msg(stream: str, sequence: int) -> Any:
        return SimpleNamespace(subject=CREATED, data=b"{}", hdrs=None, time=datetime.now(UTC))

    done: list[str] = []
    js: Any = SimpleNamespace(get_msg=get_msg)
    plan = ConsumerPlan("inventory", "ORDERS", (CREATED,), 100)
    recovery = ExhaustedDeliveries(lambda: js, "inventory", [plan], [], Store(done, fails), SystemClock())
    advisory: Any = Advisory(done)
    if fails:
        with pytest.raises(OSError, match="disk"):
            await recovery._process(advisory)
        assert done == ["redelivered"]
    else:
        await recovery._process(advisory)
        assert done == [f"stored {CREATED} no_answer", "acknowledged"]


async def test_a_message_whose_id_is_taken_by_a_foreign_one_is_published_under_another(harness: JetStreamHarness) -> None:
    """The stream calls it a duplicate; what it holds under that id is another message."""
    message = Message(CREATED, "m-1", b'{"ours": true}')

    async def take_id(js: JetStreamContext) -> None:
        await js.publish(CREATED, b'{"ours": false}', headers={"Nats-Msg-Id": "m-1"})

    async def bodies(js: JetStreamContext) -> None:
        found.extend([(await js.get_msg("ORDERS", sequence)).data for sequence in (1, 2)])

    found: list[bytes | None] = []
    await harness.administer(take_id)
    await harness.bus.publish(message)
    await harness.bus.publish(message)
    await harness.administer(bodies)
    assert found == [b'{"ours": false}', message.body]


async def test_a_message_that_was_acknowledged_late_is_not_handled_again() -> None:
    """The server redelivers it before it learns of the acknowledgement; that delivery is acknowledged on arrival."""
    sent: list[bytes] = []
    now = 0.0

    def nothing(*arguments: Any) -> None:
        """Stand for what the group does."""

    host: Any = SimpleNamespace(
        clock=SimpleNamespace(monotonic=lambda: now), ack_wait_seconds=30.0, max_tries=5,
        send=lambda subject, body, *more: sent.append(body), check_idle=nothing, message_available=nothing,
    )  # fmt: skip
    consumer = PullConsumer(ConsumerPlan("inventory", "ORDERS", (CREATED,), 100), host)
    subscription: Any = None

    def deliver(tries: int) -> None:
        reply = f"$JS.ACK.ORDERS.inventory.{tries}.7.{tries}.1700000000000000000.0"
        consumer._on_message(CREATED, reply, b"NATS/1.0\r\nNats-Msg-Id: m-1\r\n\r\n", b"{}")

    deliver(1)
    [delivery] = consumer.take(subscription, 10, now)
    now = 31.0
    await delivery.ack()
    deliver(2)
    assert consumer.take(subscription, 10, now) == []
    assert sent == [b"+ACK", b"+ACK"]
