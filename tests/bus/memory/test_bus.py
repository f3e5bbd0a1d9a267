"""The memory adapter keeps the contract, and a few promises that only make sense in one process."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.errors import BusClosed
from bus.memory.bus import MemoryBus
from bus.port import ACK_WAIT_SECONDS, MAX_TRIES, Bus, Clock, DeadLetter, DeadLetters, Delivery, Message, Subscription
from tests.bus.contract import CREATED, BusContract, message, nothing_comes, publish, take, take_one
from tests.bus.features import Features, Harness, Letters
from tests.clock import VirtualClock

T = TypeVar("T")


@define(kw_only=True)
class MemoryHarness:
    """A memory bus on a virtual clock."""

    features: Features = Features(
        publish_waits_for_groups=True,
        survives_restart=False,
        is_ordered=True,
        hears_the_past=False,
    )
    clock: VirtualClock = field(factory=VirtualClock)
    box: Letters = field(factory=Letters)
    ack_wait_seconds: float = ACK_WAIT_SECONDS
    patience_seconds: float = ACK_WAIT_SECONDS / 2
    dedup_seconds: float = 120.0
    tolerance_seconds: float = 1e-6
    late_seconds: float = 1e-6
    lag_seconds: float = 0.0
    bus: Bus = field()

    @bus.default
    def _new_bus(self) -> MemoryBus:
        return MemoryBus(
            self.clock, self.box, ack_wait_seconds=self.ack_wait_seconds, dedup_seconds=self.dedup_seconds, dedup_max=100_000
        )

    def monotonic(self) -> float:
        return self.clock.monotonic()

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def rest(self) -> None:
        await self.clock.settle()

    async def run(self, awaitable: Awaitable[T]) -> T:
        return await self.clock.run(awaitable)

    async def letters(self, count: int) -> list[DeadLetter]:
        await self.clock.settle()
        for _ in range(100):
            if len(self.box.kept) >= count:
                break
            await self.clock.advance(self.ack_wait_seconds / 10)
        assert self.box.written == len(self.box.kept), "a letter was laid down twice"
        return list(self.box.kept.values())

    def break_letters(self, times: int) -> None:
        self.box.failures_left = times

    async def restart(self) -> Bus:
        await self.run(self.bus.close(0))
        self.bus = self._new_bus()
        return self.bus


@pytest.fixture
async def harness() -> AsyncIterator[MemoryHarness]:
    """A stand; at its end no task of the bus may be left."""
    harness = MemoryHarness()
    yield harness
    await harness.run(harness.bus.close(0))
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert harness.clock.sleepers == 0


class TestMemoryBus(BusContract):
    """Everything that every bus promises."""


def test_it_is_what_the_port_describes() -> None:
    """The types agree with the protocols; mypy reads this, and the defaults are the documented ones."""
    clock: Clock = VirtualClock()
    letters: DeadLetters = Letters()
    bus: Bus = MemoryBus(clock, letters)
    harness: Harness = MemoryHarness()
    assert bus.is_connected
    assert harness.ack_wait_seconds == 30
    assert MAX_TRIES == 5


async def test_no_task_is_spent_on_a_message(harness: MemoryHarness) -> None:
    """A thousand messages in hand, a thousand delayed and ten who wait need one alarm between them."""
    before = asyncio.all_tasks()
    member = await harness.bus.subscribe("inventory", [CREATED])
    publish(harness, 2_000)
    taken = await take(harness, member, 2_000)
    for delivery in taken[:1_000]:
        await delivery.nak(10)
    waiting = [asyncio.ensure_future(member.fetch(1, 5)) for _ in range(10)]
    await harness.rest()
    assert len(asyncio.all_tasks() - before - set(waiting)) == 1
    assert await harness.run(asyncio.gather(*waiting)) == [[]] * 10


async def test_a_cancelled_fetch_leaves_nothing_behind(harness: MemoryHarness) -> None:
    """No task, no spent try, no message that only its ``ack_wait`` would bring back."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    waiting = asyncio.ensure_future(member.fetch(1, 5))
    await harness.rest()
    harness.bus.publish(message())
    waiting.cancel()
    delivery = await take_one(harness, member, 0)
    assert delivery.tries == 1
    await delivery.ack()


async def test_a_fetch_that_came_to_nothing_leaves_nothing_behind(harness: MemoryHarness) -> None:
    """An idle consumer may ask for ever."""
    bus = MemoryBus(harness.clock, harness.box)
    member = await bus.subscribe("inventory", [CREATED])
    for _ in range(50):
        assert await harness.run(member.fetch(1, 1)) == []
    assert not bus._groups["inventory"].waiters
    await bus.close()


async def test_settled_messages_are_let_go(harness: MemoryHarness) -> None:
    """The window remembers ids, not bodies; a settled message can be collected while its id is still known."""
    member = await harness.bus.subscribe("inventory", [CREATED])

    class Body(bytes):
        """Bytes that can be watched."""

    body = Body(b"x")
    said = harness.bus.publish(Message(CREATED, "one-id", body))
    watched = weakref.ref(said)
    references = len(gc.get_referrers(body))
    await (await take_one(harness, member)).ack()
    await harness.run(said)
    del said
    gc.collect()
    assert watched() is None
    assert len(gc.get_referrers(body)) < references
    await harness.run(harness.bus.publish(Message(CREATED, "one-id", b"y")))


@pytest.mark.parametrize("is_heard", [True, False])
async def test_the_memory_for_ids_is_bounded_by_count(is_heard: bool) -> None:
    """The oldest of too many settled ids is forgotten, and no more than it."""
    clock = VirtualClock()
    bus = MemoryBus(clock, Letters(), dedup_max=100)
    member = await bus.subscribe("inventory", [CREATED] if is_heard else [])
    for number in range(1_000):
        bus.publish(message(id=f"id-{number}"))
        for delivery in await member.fetch(1, 0):
            await delivery.ack()
        assert len(bus._publications) <= 101
        assert len(bus._settled) <= 100
    late = await bus.subscribe("late", [CREATED])
    bus.publish(message(id="id-900"))
    assert await late.fetch(1, 0) == []
    bus.publish(message(id="id-899"))
    assert len(await late.fetch(1, 0)) == 1
    await bus.close(0)


async def test_the_memory_for_ids_is_bounded_by_time() -> None:
    """What is older than the window is dropped as the work goes on."""
    clock = VirtualClock()
    bus = MemoryBus(clock, Letters(), dedup_seconds=10)
    for number in range(1_000):
        bus.publish(message(id=f"id-{number}"))
        await clock.advance(1)
        assert len(bus._publications) <= 11
    await bus.close(0)


async def test_an_unsettled_id_is_known_for_as_long_as_it_takes() -> None:
    """A message that waits for hours behind a pause is not delivered twice because somebody said it again."""
    clock = VirtualClock()
    bus = MemoryBus(clock, Letters(), dedup_seconds=10, dedup_max=2)
    member = await bus.subscribe("inventory", [CREATED])
    for _ in range(20):
        for number in range(5):
            bus.publish(message(id=f"id-{number}"))
        await clock.advance(3600)
    heard = Counter(each.message.id for each in await member.fetch(1_000, 0))
    assert heard == {f"id-{number}": 1 for number in range(5)}
    await bus.close(0)


async def test_forgetting_an_old_id_spares_the_new_message_that_has_it() -> None:
    """An id that was used again after the window is known from its second use."""
    clock = VirtualClock()
    bus = MemoryBus(clock, Letters(), dedup_seconds=10)
    member = await bus.subscribe("inventory", [CREATED])
    bus.publish(message(id="one-id"))
    for delivery in await member.fetch(1, 0):
        await delivery.ack()
    await clock.advance(11)
    bus.publish(message(id="one-id"))
    assert len(await member.fetch(1, 0)) == 1
    bus.publish(message(subject="nobody.hears.v1"))  # settled at once: a moment to forget what is old
    bus.publish(message(id="one-id"))
    assert await member.fetch(1, 0) == []
    await bus.close(0)


async def test_letters_are_tried_again_with_growing_delays(harness: MemoryHarness) -> None:
    """1, 2, 4, ... seconds, never more than 30, so that a store that heals is soon asked and a dead one not flooded."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    harness.break_letters(1_000_000)
    harness.bus.publish(message())
    await (await take_one(harness, member)).term("nonsense")
    await harness.rest()
    at, attempts = [harness.monotonic()], harness.box.attempts
    while len(at) < 9:
        await harness.pass_time(0.5)
        if harness.box.attempts > attempts:
            attempts += 1
            at.append(harness.monotonic())
        assert harness.box.attempts == attempts
    assert [later - earlier for earlier, later in itertools.pairwise(at)] == [1, 2, 4, 8, 16, 30, 30, 30]


async def test_a_letter_that_always_fails_blocks_no_other(harness: MemoryHarness) -> None:
    """Each letter has its own delay."""

    class Picky(Letters):
        async def add(self, dead_letter: DeadLetter) -> None:
            if dead_letter.error == "bad":
                raise asyncio.CancelledError("the store's own task was cancelled")
            await super().add(dead_letter)

    picky = Picky()
    bus = MemoryBus(harness.clock, picky)
    member = await bus.subscribe("inventory", [CREATED])
    said = [bus.publish(message()) for _ in range(4)]
    for delivery, error in zip(await member.fetch(4, 0), ["bad", "good", "bad", "good"], strict=True):
        await delivery.term(error)
    await harness.pass_time(100)
    assert [future.done() for future in said] == [False, True, False, True]
    await harness.run(bus.close(1))
    assert [isinstance(future.exception(), BusClosed) for future in said] == [True, False, True, False]


async def test_closing_does_not_wait_for_a_store_that_hangs() -> None:
    """Beyond the grace it is cancelled."""

    class Hanging(Letters):
        async def add(self, dead_letter: DeadLetter) -> None:
            await asyncio.Event().wait()

    clock = VirtualClock()
    before = asyncio.all_tasks()
    bus = MemoryBus(clock, Hanging())
    member = await bus.subscribe("inventory", [CREATED])
    said = [bus.publish(message()) for _ in range(2)]
    for delivery in await member.fetch(2, 0):
        await delivery.term("nonsense")
    await clock.run(bus.close(3))
    assert clock.monotonic() == 3
    assert [type(future.exception()) for future in said] == [BusClosed, BusClosed]
    assert asyncio.all_tasks() == before


async def test_closing_waits_for_the_last_letter_and_no_longer(harness: MemoryHarness) -> None:
    """A store that comes back within the grace still gets what is due to it."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    harness.break_letters(2)
    said = harness.bus.publish(message())
    await (await take_one(harness, member)).term("nonsense")
    await harness.run(harness.bus.close(20))
    assert harness.monotonic() == 3
    await harness.run(said)
    assert len(harness.box.kept) == 1


async def test_answers_after_the_end_start_nothing(harness: MemoryHarness) -> None:
    """A bus that is closed stays without tasks."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    publish(harness, 3)
    failed, termed, busy = await take(harness, member, 3)
    before = asyncio.all_tasks()
    await harness.bus.close(0)
    await failed.nak(10)
    await termed.term("nonsense")
    await busy.in_progress()
    assert asyncio.all_tasks() <= before


def test_a_loop_that_ends_ends_the_tasks_of_the_bus() -> None:
    """Cancelled from outside, while it lays down a letter, a bus that was never closed starts nothing new."""

    class Hanging(Letters):
        async def add(self, dead_letter: DeadLetter) -> None:
            await asyncio.Event().wait()

    async def main() -> list[asyncio.Task[object]]:
        clock = VirtualClock()
        bus = MemoryBus(clock, Hanging())
        member = await bus.subscribe("inventory", [CREATED])
        bus.publish(message())
        [delivery] = await member.fetch(1, 0)
        await delivery.term("nonsense")
        await clock.settle()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return list(tasks)

    assert all(task.cancelled() for task in asyncio.run(main()))


async def test_a_publisher_that_has_left_is_not_complained_about(harness: MemoryHarness) -> None:
    """A refused publish that nobody waits for any more makes no noise on the loop."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    await harness.bus.subscribe("inventory", [CREATED])
    publish(harness, 3)
    await harness.bus.close()
    publish(harness, 3)
    gc.collect()
    assert complaints == []


async def test_an_impatient_close_ends_a_patient_one(harness: MemoryHarness) -> None:
    """Who says "at once" is heard, also by who meant to wait."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    harness.bus.publish(message())
    await take_one(harness, member)
    patient = asyncio.ensure_future(harness.bus.close(20))
    await harness.rest()
    await harness.bus.close(0.0)
    await harness.run(patient)
    assert harness.monotonic() == 0


async def test_the_last_try_outlives_its_member(harness: MemoryHarness) -> None:
    """It cannot be handed on; so its holder may still answer until ``ack_wait`` is over."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    said = harness.bus.publish(message())
    for _ in range(MAX_TRIES - 1):
        await (await take_one(harness, member)).nak(0)
    last = await take_one(harness, member)
    await member.close()
    other = await harness.bus.subscribe("inventory", [CREATED])
    await nothing_comes(harness, other, for_seconds=harness.ack_wait_seconds / 2)
    await last.ack()
    await harness.run(said)
    await harness.pass_time(harness.ack_wait_seconds)
    assert await harness.letters(0) == []


@pytest.mark.parametrize("limit", [0, -1])
async def test_fetching_less_than_one_message_is_a_mistake(harness: MemoryHarness, limit: int) -> None:
    """It could only wait for ever, and in the way of others."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    with pytest.raises(ValueError, match="cannot fetch"):
        await member.fetch(limit, 1)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "fetch", "wait", "cancel", "ack", "nak", "term", "progress", "pause", "close", "time"]),
        st.integers(0, 5),
    ),
    max_size=80,
)


@settings(deadline=None, max_examples=150)
@given(ACTIONS)
def test_whatever_happens_each_message_has_one_end(actions: list[tuple[str, int]]) -> None:
    """Under any schedule: one holder at a time, tries in order and never a sixth, and one end for each message."""
    asyncio.run(_play(actions))


async def _play(actions: list[tuple[str, int]]) -> None:
    clock, letters = VirtualClock(), Letters()
    letters.failures_left = 2
    bus = MemoryBus(clock, letters, ack_wait_seconds=10)
    members: list[Subscription] = [await bus.subscribe("inventory", [CREATED]) for _ in range(2)]
    said: dict[str, asyncio.Future[None]] = {}
    hands: list[Delivery] = []
    held_until: dict[str, float] = {}
    tries: Counter[str] = Counter()
    ended: set[str] = set()
    waiting: list[asyncio.Task[None]] = []

    def receive(batch: list[Delivery], at: float) -> None:
        for delivery in batch:
            id = delivery.message.id
            assert id not in ended, "it came back after its end"
            assert at >= held_until.get(id, 0), "two held it at once"
            tries[id] += 1
            assert delivery.tries == tries[id] <= MAX_TRIES
            held_until[id] = at + 10
            hands.append(delivery)

    async def wait(member: Subscription, limit: int, wait_seconds: float) -> None:
        receive(await member.fetch(limit, wait_seconds), clock.monotonic())

    def pick(number: int) -> Delivery | None:
        return hands.pop(number % len(hands)) if hands else None

    for action, number in actions:
        member = members[number % len(members)]
        if action == "publish":
            each = message()
            said[each.id] = bus.publish(each)
        elif action == "fetch":
            receive(await member.fetch(number + 1, 0), clock.monotonic())
        elif action == "wait":
            waiting.append(asyncio.create_task(wait(member, number + 1, 4.0 * number)))
            await asyncio.sleep(0)
        elif action == "cancel" and waiting:
            waiting[number % len(waiting)].cancel()
        elif action == "pause":
            member.resume() if member.is_paused else member.pause()
        elif action == "close":
            for delivery in hands:
                if getattr(delivery, "subscription", None) is member and delivery.tries < MAX_TRIES:
                    held_until[delivery.message.id] = 0
            await member.close()
            members[number % len(members)] = await bus.subscribe("inventory", [CREATED])
        elif action == "time":
            await clock.advance(3.0 * number)
        elif action in ("ack", "nak", "term") and (picked := pick(number)):
            delivery = picked
            id = delivery.message.id
            is_holder = clock.monotonic() < held_until[id] and delivery.tries == tries[id]
            if action == "ack":
                await delivery.ack()
                ended.add(id)
            elif action == "term":
                await delivery.term("nonsense")
                ended.add(id)
            else:
                await delivery.nak(2.0 * number)
                if is_holder:
                    held_until[id] = clock.monotonic() + 2.0 * number
                    if delivery.tries == MAX_TRIES:
                        ended.add(id)
        elif action == "progress" and hands:
            delivery = hands[number % len(hands)]
            if delivery.tries == tries[delivery.message.id] and clock.monotonic() < held_until[delivery.message.id]:
                await delivery.in_progress()
                held_until[delivery.message.id] = clock.monotonic() + 10

    for member in members:
        member.resume()
    while not all(future.done() for future in said.values()):
        before = len(said)
        await clock.advance(12)
        for delivery in await members[0].fetch(100, 0):
            receive([delivery], clock.monotonic())
            await delivery.ack()
            ended.add(delivery.message.id)
        assert clock.monotonic() < 10_000, f"{before} messages never came to an end"
    ends = await clock.run(asyncio.gather(*waiting, return_exceptions=True))
    assert [end for end in ends if end is not None and not isinstance(end, asyncio.CancelledError)] == []
    assert all(future.exception() is None for future in said.values())
    assert letters.written == len(letters.kept)
    await clock.run(bus.close(0))
    assert len(asyncio.all_tasks()) == 1
