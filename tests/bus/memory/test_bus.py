"""The memory adapter passes the contract suite, and keeps promises of its own."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from app.clock import SystemClock
from bus.errors import BusClosed
from bus.memory.bus import MemoryBus
from bus.port import ACK_WAIT_SECONDS, MAX_TRIES, Bus, Clock, DeadLetter, DeadLetters, Delivery, Message, Subscription
from tests.bus.contract import CREATED, BusContract, expect_nothing, message, publish, take, take_one
from tests.bus.features import Features, Harness, InMemoryDeadLetters
from tests.clock import VirtualClock
from tests.examples import examples

T = TypeVar("T")


@define(kw_only=True)
class MemoryHarness:
    """A memory bus on a virtual clock."""

    features: Features = Features(
        publish_waits_for_groups=True,
        survives_restart=False,
        is_ordered=True,
        delivers_earlier_messages=False,
    )
    clock: VirtualClock = field(factory=VirtualClock)
    store: InMemoryDeadLetters = field(factory=InMemoryDeadLetters)
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
            self.clock, self.store, ack_wait_seconds=self.ack_wait_seconds, dedup_seconds=self.dedup_seconds, dedup_max=100_000
        )

    def monotonic(self) -> float:
        return self.clock.monotonic()

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def rest(self) -> None:
        await self.clock.settle()

    async def run(self, awaitable: Awaitable[T]) -> T:
        return await self.clock.run(awaitable)

    async def dead_letters(self, count: int) -> list[DeadLetter]:
        await self.clock.settle()
        for _ in range(100):
            if len(self.store.kept) >= count:
                break
            await self.clock.advance(self.ack_wait_seconds / 10)
        assert self.store.written == len(self.store.kept), "a dead letter was stored twice"
        return list(self.store.kept.values())

    def fail_dead_letters(self, times: int) -> None:
        self.store.failures_left = times

    async def restart(self) -> Bus:
        await self.run(self.bus.close(0))
        self.bus = self._new_bus()
        return self.bus


@pytest.fixture
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[MemoryHarness]:
    """A memory bus; at the end of the test it must have no task left."""
    harness = MemoryHarness(**getattr(request, "param", {}))
    yield harness
    await harness.run(harness.bus.close(0))
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert harness.clock.sleepers == 0


class TestMemoryBus(BusContract):
    """The contract suite on the memory bus."""


def test_the_memory_bus_has_the_types_of_the_port() -> None:
    """mypy checks the types against the protocols; the defaults are the documented ones."""
    clock: Clock = VirtualClock()
    store: DeadLetters = InMemoryDeadLetters()
    bus: Bus = MemoryBus(clock, store)
    harness: Harness = MemoryHarness()
    assert bus.is_connected
    assert harness.ack_wait_seconds == 30
    assert MAX_TRIES == 5


async def test_a_message_costs_no_task(harness: MemoryHarness) -> None:
    """A thousand messages in hand, a thousand delayed and ten waiting fetches need one timer task between them."""
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
    """It leaves no task, spends no try, and the message is ready at once, without a wait for ``ack_wait``."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    waiting = asyncio.ensure_future(member.fetch(1, 5))
    await harness.rest()
    harness.bus.publish(message())
    waiting.cancel()
    delivery = await take_one(harness, member, 0)
    assert delivery.tries == 1
    await delivery.ack()


async def test_an_empty_fetch_leaves_nothing_behind(harness: MemoryHarness) -> None:
    """An idle consumer may fetch forever."""
    bus = MemoryBus(harness.clock, harness.store)
    member = await bus.subscribe("inventory", [CREATED])
    for _ in range(50):
        assert await harness.run(member.fetch(1, 1)) == []
    assert not bus._groups["inventory"].waiters
    await bus.close()


async def test_a_settled_message_can_be_garbage_collected(harness: MemoryHarness) -> None:
    """The bus remembers ids, not bodies; a settled message can be collected while its id is still known."""
    member = await harness.bus.subscribe("inventory", [CREATED])

    class Body(bytes):
        """Bytes that can be weakly referenced and counted."""

    body = Body(b"x")
    published = harness.bus.publish(Message(CREATED, "one-id", body))
    watched = weakref.ref(published)
    references = len(gc.get_referrers(body))
    await (await take_one(harness, member)).ack()
    await harness.run(published)
    del published
    gc.collect()
    assert watched() is None
    assert len(gc.get_referrers(body)) < references
    await harness.run(harness.bus.publish(Message(CREATED, "one-id", b"y")))


@pytest.mark.parametrize("has_group", [True, False])
async def test_the_memory_of_ids_is_bounded_by_count(has_group: bool) -> None:
    """Beyond *dedup_max* the oldest settled id is forgotten, and no other."""
    clock = VirtualClock()
    bus = MemoryBus(clock, InMemoryDeadLetters(), dedup_max=100)
    member = await bus.subscribe("inventory", [CREATED] if has_group else [])
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


async def test_the_memory_of_ids_is_bounded_by_time() -> None:
    """Ids older than the deduplication window are dropped as further messages are published."""
    clock = VirtualClock()
    bus = MemoryBus(clock, InMemoryDeadLetters(), dedup_seconds=10)
    for number in range(1_000):
        bus.publish(message(id=f"id-{number}"))
        await clock.advance(1)
        assert len(bus._publications) <= 11
    await bus.close(0)


async def test_an_unsettled_id_is_remembered_without_limit() -> None:
    """A duplicate of a message that waits for hours is not delivered."""
    clock = VirtualClock()
    bus = MemoryBus(clock, InMemoryDeadLetters(), dedup_seconds=10, dedup_max=2)
    member = await bus.subscribe("inventory", [CREATED])
    for _ in range(20):
        for number in range(5):
            bus.publish(message(id=f"id-{number}"))
        await clock.advance(3600)
    received = Counter(each.message.id for each in await member.fetch(1_000, 0))
    assert received == {f"id-{number}": 1 for number in range(5)}
    await bus.close(0)


async def test_forgetting_an_old_id_does_not_forget_its_second_use() -> None:
    """An id that is used again after the window is remembered from its second use on."""
    clock = VirtualClock()
    bus = MemoryBus(clock, InMemoryDeadLetters(), dedup_seconds=10)
    member = await bus.subscribe("inventory", [CREATED])
    bus.publish(message(id="one-id"))
    for delivery in await member.fetch(1, 0):
        await delivery.ack()
    await clock.advance(11)
    bus.publish(message(id="one-id"))
    assert len(await member.fetch(1, 0)) == 1
    bus.publish(message(subject="without.group.v1"))  # settled at once, which makes the bus forget old ids
    bus.publish(message(id="one-id"))
    assert await member.fetch(1, 0) == []
    await bus.close(0)


async def test_a_dead_letter_is_retried_with_growing_delays(harness: MemoryHarness) -> None:
    """
    After 1, 2, 4, ... seconds, never more than 30: a store that recovers is used soon, and one that fails is not
    flooded.
    """
    member = await harness.bus.subscribe("inventory", [CREATED])
    harness.fail_dead_letters(1_000_000)
    harness.bus.publish(message())
    await (await take_one(harness, member)).term("nonsense")
    await harness.rest()
    at, attempts = [harness.monotonic()], harness.store.attempts
    while len(at) < 9:
        await harness.pass_time(0.5)
        if harness.store.attempts > attempts:
            attempts += 1
            at.append(harness.monotonic())
        assert harness.store.attempts == attempts
    assert [later - earlier for earlier, later in itertools.pairwise(at)] == [1, 2, 4, 8, 16, 30, 30, 30]


async def test_a_dead_letter_that_always_fails_delays_no_other(harness: MemoryHarness) -> None:
    """Each dead letter has its own delay."""

    class Selective(InMemoryDeadLetters):
        async def add(self, dead_letter: DeadLetter) -> None:
            if dead_letter.error == "bad":
                raise asyncio.CancelledError("the store's own task was cancelled")
            await super().add(dead_letter)

    store = Selective()
    bus = MemoryBus(harness.clock, store)
    member = await bus.subscribe("inventory", [CREATED])
    published = [bus.publish(message()) for _ in range(4)]
    for delivery, error in zip(await member.fetch(4, 0), ["bad", "good", "bad", "good"], strict=True):
        await delivery.term(error)
    await harness.pass_time(100)
    assert [future.done() for future in published] == [False, True, False, True]
    await harness.run(bus.close(1))
    assert [isinstance(future.exception(), BusClosed) for future in published] == [True, False, True, False]


async def test_closing_does_not_wait_for_a_store_that_hangs() -> None:
    """After the grace period the store is cancelled."""

    class Hanging(InMemoryDeadLetters):
        async def add(self, dead_letter: DeadLetter) -> None:
            await asyncio.Event().wait()

    clock = VirtualClock()
    before = asyncio.all_tasks()
    bus = MemoryBus(clock, Hanging())
    member = await bus.subscribe("inventory", [CREATED])
    published = [bus.publish(message()) for _ in range(2)]
    for delivery in await member.fetch(2, 0):
        await delivery.term("nonsense")
    await clock.run(bus.close(3))
    assert clock.monotonic() == 3
    assert [type(future.exception()) for future in published] == [BusClosed, BusClosed]
    assert asyncio.all_tasks() == before


async def test_closing_waits_for_the_last_dead_letter_and_no_longer(harness: MemoryHarness) -> None:
    """A store that recovers within the grace period still gets the dead letter."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    harness.fail_dead_letters(2)
    published = harness.bus.publish(message())
    await (await take_one(harness, member)).term("nonsense")
    await harness.run(harness.bus.close(20))
    assert harness.monotonic() == 3
    await harness.run(published)
    assert len(harness.store.kept) == 1


async def test_answers_after_the_close_start_no_task(harness: MemoryHarness) -> None:
    """A closed bus has no tasks."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    publish(harness, 3)
    failed, termed, busy = await take(harness, member, 3)
    before = asyncio.all_tasks()
    await harness.bus.close(0)
    await failed.nak(10)
    await termed.term("nonsense")
    await busy.in_progress()
    assert asyncio.all_tasks() <= before


def test_cancelled_tasks_of_an_open_bus_start_no_others() -> None:
    """When the event loop ends while a dead letter is being stored, a bus that was never closed starts no task."""

    class Hanging(InMemoryDeadLetters):
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


async def test_a_rejected_publish_whose_future_is_dropped_logs_nothing(harness: MemoryHarness) -> None:
    """The loop does not report an exception that was never retrieved."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    await harness.bus.subscribe("inventory", [CREATED])
    publish(harness, 3)
    await harness.bus.close()
    publish(harness, 3)
    gc.collect()
    assert complaints == []


async def test_a_close_without_grace_ends_one_that_waits(harness: MemoryHarness) -> None:
    """The shortest grace period applies to every pending close."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    harness.bus.publish(message())
    await take_one(harness, member)
    waiting = asyncio.ensure_future(harness.bus.close(20))
    await harness.rest()
    await harness.bus.close(0.0)
    await harness.run(waiting)
    assert harness.monotonic() == 0


async def test_the_last_try_stays_in_hand_when_its_member_closes(harness: MemoryHarness) -> None:
    """It cannot be redelivered, so its handler may still answer until ``ack_wait`` is over."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    published = harness.bus.publish(message())
    for _ in range(MAX_TRIES - 1):
        await (await take_one(harness, member)).nak(0)
    last = await take_one(harness, member)
    await member.close()
    other = await harness.bus.subscribe("inventory", [CREATED])
    await expect_nothing(harness, other, for_seconds=harness.ack_wait_seconds / 2)
    await last.ack()
    await harness.run(published)
    await harness.pass_time(harness.ack_wait_seconds)
    assert await harness.dead_letters(0) == []


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_fetch_of_less_than_one_message_is_an_error(harness: MemoryHarness, limit: int) -> None:
    """It could never return a message."""
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


@settings(deadline=None, max_examples=examples(150))
@given(ACTIONS)
def test_under_any_schedule_each_message_is_settled_once(actions: list[tuple[str, int]]) -> None:
    """Under any schedule a message has one holder at a time, counts its tries up to the last, and is settled once."""
    asyncio.run(_play(actions))


async def _play(actions: list[tuple[str, int]]) -> None:
    clock, store = VirtualClock(), InMemoryDeadLetters()
    store.failures_left = 2
    bus = MemoryBus(clock, store, ack_wait_seconds=10)
    members: list[Subscription] = [await bus.subscribe("inventory", [CREATED]) for _ in range(2)]
    published: dict[str, asyncio.Future[None]] = {}
    in_hand: list[Delivery] = []
    held_until: dict[str, float] = {}
    tries: Counter[str] = Counter()
    ended: set[str] = set()
    waiting: list[asyncio.Task[None]] = []

    def receive(batch: list[Delivery], at: float) -> None:
        for delivery in batch:
            id = delivery.message.id
            assert id not in ended, "it was redelivered after its end"
            assert at >= held_until.get(id, 0), "two members held it at once"
            tries[id] += 1
            assert delivery.tries == tries[id] <= MAX_TRIES
            held_until[id] = at + 10
            in_hand.append(delivery)

    async def wait(member: Subscription, limit: int, wait_seconds: float) -> None:
        receive(await member.fetch(limit, wait_seconds), clock.monotonic())

    def pick(number: int) -> Delivery | None:
        return in_hand.pop(number % len(in_hand)) if in_hand else None

    for action, number in actions:
        member = members[number % len(members)]
        if action == "publish":
            each = message()
            published[each.id] = bus.publish(each)
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
            for delivery in in_hand:
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
        elif action == "progress" and in_hand:
            delivery = in_hand[number % len(in_hand)]
            if delivery.tries == tries[delivery.message.id] and clock.monotonic() < held_until[delivery.message.id]:
                await delivery.in_progress()
                held_until[delivery.message.id] = clock.monotonic() + 10

    for member in members:
        member.resume()
    while not all(future.done() for future in published.values()):
        before = len(published)
        await clock.advance(12)
        for delivery in await members[0].fetch(100, 0):
            receive([delivery], clock.monotonic())
            await delivery.ack()
            ended.add(delivery.message.id)
        assert clock.monotonic() < 10_000, f"{before} messages were never settled"
    ends = await clock.run(asyncio.gather(*waiting, return_exceptions=True))
    assert [end for end in ends if end is not None and not isinstance(end, asyncio.CancelledError)] == []
    assert all(future.exception() is None for future in published.values())
    assert store.written == len(store.kept)
    await clock.run(bus.close(0))
    assert len(asyncio.all_tasks()) == 1


async def test_dead_letters_of_one_batch_are_equally_old() -> None:
    """On the machine's clock, too, whose two readings are apart by chance: they must not give the messages an order."""
    store = InMemoryDeadLetters()
    bus = MemoryBus(SystemClock(), store)
    member = await bus.subscribe("inventory", [CREATED])
    published = [bus.publish(message(key="order-1")) for _ in range(200)]
    for delivery in await member.fetch(200, 1.0):
        await delivery.term("unreadable")
    await asyncio.gather(*published)
    assert len({letter.first_seen for letter in store.kept.values()}) == 1
    await bus.close(0)


async def test_no_dead_letter_is_younger_than_its_message() -> None:
    """Also where the wall clock falls behind the other one, as it is slewed: it was first seen no later than last."""

    class SlewedClock(VirtualClock):
        def now(self) -> datetime:
            return super().now() - timedelta(seconds=self.monotonic() / 1000)

    harness = MemoryHarness(clock=SlewedClock())
    member = await harness.bus.subscribe("inventory", [CREATED])
    for _ in range(3):
        await harness.pass_time(60)
        harness.bus.publish(message())
        await (await take_one(harness, member)).term("unreadable")
    letters = await harness.dead_letters(3)
    assert [letter.last_seen - letter.first_seen for letter in letters] == [timedelta()] * 3
    await harness.run(harness.bus.close(0))


async def test_an_id_is_forgotten_at_the_end_of_its_time(harness: MemoryHarness) -> None:
    """Not a moment later: a schedule of the same length would find each message a duplicate of the one before."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    for _ in range(3):
        harness.bus.publish(message(id="m-1"))
        await (await take_one(harness, member)).ack()
        await harness.pass_time(harness.dedup_seconds)


@pytest.mark.parametrize("gives_up", ["closes", "is silent"])
async def test_what_a_member_had_in_hand_comes_again_first_and_in_its_order(harness: MemoryHarness, gives_up: str) -> None:
    first, second = [await harness.bus.subscribe("inventory", [CREATED]) for _ in range(2)]
    publish(harness, 5)
    await take(harness, first, 3)
    if gives_up == "closes":
        await first.close()
    else:
        await harness.pass_time(harness.ack_wait_seconds)
    assert [each.message.body for each in await take(harness, second, 5)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_handler_that_reports_late_has_its_message_back_until_it_falls_silent(harness: MemoryHarness) -> None:
    """While no other member has received it; after another ``ack_wait`` it is redelivered."""
    member = await harness.bus.subscribe("inventory", [CREATED])
    harness.bus.publish(message())
    delivery = await take_one(harness, member)
    await harness.pass_time(harness.ack_wait_seconds + 1)
    await delivery.in_progress()
    await expect_nothing(harness, member, for_seconds=harness.ack_wait_seconds - 1)
    assert (await take_one(harness, member, 2)).tries == 2


@pytest.mark.parametrize("waits", ["as ready", "for the end of a delay"])
async def test_a_message_that_was_acknowledged_late_does_not_count_as_waiting(harness: MemoryHarness, waits: str) -> None:
    """A version of an event may be dropped once no message of it is pending."""
    bus: Any = harness.bus
    member = await bus.subscribe("inventory", [CREATED])
    bus.publish(message())
    early = await take_one(harness, member)
    await harness.pass_time(harness.ack_wait_seconds + 1)
    if waits != "as ready":
        await (await take_one(harness, member)).nak(60)
    assert bus.groups() == [("inventory", (CREATED,), 1)]
    await early.ack()
    assert bus.groups() == [("inventory", (CREATED,), 0)]
