"""The dead-letter queue stores before it settles, retries what fails, and keeps the messages in hand meanwhile."""

from __future__ import annotations

import asyncio
from math import inf

import pytest
from attrs import define, field

from bus.dead_letter_queue import DeadLetterQueue
from bus.port import DeadLetter, Message
from tests.bus.features import InMemoryDeadLetters
from tests.clock import VirtualClock


@define
class QueueHarness:
    """A queue on a virtual clock, with everything that it calls."""

    clock: VirtualClock = field(factory=VirtualClock)
    store: InMemoryDeadLetters = field(factory=InMemoryDeadLetters)
    settled: list[str] = field(factory=list)
    extended: list[str] = field(factory=list)
    settled_elsewhere: set[str] = field(factory=set)
    idle: int = 0
    queue: DeadLetterQueue = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.queue = DeadLetterQueue(self.clock, self.store, on_idle=self.on_idle)

    def on_idle(self) -> None:
        self.idle += 1

    def put(self, id: str) -> None:
        def extend() -> bool:
            self.extended.append(id)
            return id not in self.settled_elsewhere

        dead_letter = DeadLetter.of(Message("a.b.v1", id, b""), "consumer", "failed", "", 5, None, self.clock.now())
        self.queue.put(dead_letter, lambda: self.settled.append(id), extend)

    async def tick(self, after_seconds: float) -> None:
        await self.clock.advance(after_seconds)
        self.queue.tick(self.clock.monotonic())
        await self.clock.settle()


@pytest.fixture
def harness() -> QueueHarness:
    return QueueHarness()


async def test_a_message_is_settled_once_its_dead_letter_is_stored(harness: QueueHarness) -> None:
    """Dead letters are stored in the order of their arrival, and the queue is idle after the last."""
    harness.put("1")
    harness.put("2")
    assert (harness.settled, harness.queue.is_empty) == ([], False)
    await harness.clock.settle()
    assert [each.message.id for each in harness.store.kept.values()] == ["1", "2"]
    assert (harness.settled, harness.idle, harness.queue.is_empty, harness.queue.next_at) == (["1", "2"], 1, True, inf)


async def test_a_failed_store_is_retried_when_due(harness: QueueHarness) -> None:
    """`next_at` names the time; a tick before that only extends the ack deadline."""
    harness.store.failures_left = 2
    harness.put("1")
    await harness.clock.settle()
    assert (harness.queue.next_at, harness.queue.is_empty) == (1, False)
    await harness.tick(0.5)
    assert harness.store.attempts == 1
    await harness.tick(0.5)
    assert (harness.store.attempts, harness.queue.next_at) == (2, 3)
    await harness.tick(2)
    assert (harness.store.attempts, harness.settled) == (3, ["1"])


async def test_the_ack_deadline_is_extended_until_the_dead_letter_is_stored(harness: QueueHarness) -> None:
    """Every tick extends each waiting message, and none that is settled."""
    harness.store.failures_left = 1
    harness.put("1")
    await harness.clock.settle()
    before = len(harness.extended)
    await harness.tick(0.4)
    await harness.tick(0.4)
    assert len(harness.extended) == before + 2
    await harness.tick(0.4)
    assert harness.settled == ["1"]
    before = len(harness.extended)
    await harness.tick(0.4)
    assert len(harness.extended) == before


async def test_a_dead_letter_whose_message_is_settled_elsewhere_is_dropped(harness: QueueHarness) -> None:
    """A late ack of an earlier delivery settles the message while its dead letter waits for a retry."""
    harness.store.failures_left = 1
    harness.put("1")
    await harness.clock.settle()
    harness.settled_elsewhere.add("1")
    await harness.tick(1)
    assert (harness.store.attempts, harness.settled, harness.queue.is_empty) == (1, [], True)


async def test_a_closed_queue_stores_nothing(harness: QueueHarness) -> None:
    """What waits is dropped, and what is put afterwards is ignored; `close` is idempotent."""
    harness.store.failures_left = 1
    harness.put("1")
    await harness.clock.settle()
    assert harness.queue.close() is None
    assert harness.queue.close() is None
    harness.put("2")
    await harness.tick(60)
    assert (harness.store.kept, harness.settled, harness.queue.is_empty) == ({}, [], True)


async def test_a_queue_that_is_storing_is_not_empty() -> None:
    """Also if nothing else waits: the bus waits for it when it closes."""
    is_stored = asyncio.Event()

    class Slow(InMemoryDeadLetters):
        async def add(self, dead_letter: DeadLetter) -> None:
            await is_stored.wait()
            await super().add(dead_letter)

    harness = QueueHarness(store=Slow())
    harness.put("1")
    await harness.clock.settle()
    assert not harness.queue.is_empty
    is_stored.set()
    await harness.clock.settle()
    assert harness.queue.is_empty


async def test_closing_cancels_the_store_that_hangs() -> None:
    """The caller gets the cancelled task, and decides how long to wait for it."""

    class Hanging(InMemoryDeadLetters):
        async def add(self, dead_letter: DeadLetter) -> None:
            await asyncio.Event().wait()

    harness = QueueHarness(store=Hanging())
    harness.put("1")
    harness.put("2")
    await harness.clock.settle()
    before = len(harness.extended)
    await harness.tick(1)
    assert sorted(harness.extended[before:]) == ["1", "2"], "the one that is being stored is in hand, too"
    assert harness.queue.next_at == inf, "a timer for what is due would go in circles until the store answers"
    storing = harness.queue.close()
    assert storing is not None
    await asyncio.wait([storing])
    assert (storing.cancelled(), harness.idle, harness.queue.is_empty) == (True, 0, True)
