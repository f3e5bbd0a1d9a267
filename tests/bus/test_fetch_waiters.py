"""Waiting fetches wake each other, so that no message is left lying while one of them waits."""

from __future__ import annotations

import asyncio
from typing import Any

from attrs import define, field

from bus.fetch_waiters import FetchGroup, FetchWaiters, GroupSubscription
from bus.port import Delivery
from tests.clock import VirtualClock


@define
class Host:
    """A bus that has nothing but a clock."""

    clock: VirtualClock = field(factory=VirtualClock)
    is_closing: bool = False


@define(eq=False)
class Group:
    """A group whose messages are numbers, and whose waiting fetches end only when they are woken."""

    name: str = "inventory"
    host: Any = field(factory=Host)
    waiters: FetchWaiters = field(factory=FetchWaiters)
    is_standby: bool = False
    ready: list[Any] = field(factory=list)

    def take(self, subscription: GroupSubscription[Any], limit: int, now: float) -> list[Delivery]:
        taken, self.ready = self.ready[:limit], self.ready[limit:]
        return taken

    def wake(self) -> None:
        if self.ready:
            self.waiters.wake_one()

    async def wait(self, woken: asyncio.Future[None], deadline: float) -> None:
        await woken

    def resume(self) -> None:
        self.wake()

    async def remove(self, subscription: GroupSubscription[Any]) -> None:
        """Nothing is in hand here."""


async def started(group: Group, count: int) -> list[tuple[GroupSubscription[Group], asyncio.Task[list[Delivery]]]]:
    """Return *count* subscriptions, each with a fetch of one message that waits."""
    subscriptions = [GroupSubscription(group) for _ in range(count)]
    found = [(each, asyncio.create_task(each.fetch(1, 60))) for each in subscriptions]
    await group.host.clock.settle()
    return found


def results(fetches: list[asyncio.Task[list[Delivery]]]) -> list[object]:
    return [fetch.result() if fetch.done() and not fetch.cancelled() else None for fetch in fetches]


def test_a_group_of_this_file_has_the_types_of_the_protocol() -> None:
    """mypy checks them."""
    group: FetchGroup = Group()
    assert not group.waiters


async def test_the_fetch_that_waits_longest_is_woken_first() -> None:
    """One message wakes one fetch."""
    group = Group()
    [(_, first), (_, second)] = await started(group, 2)
    group.ready = [1]
    group.wake()
    await group.host.clock.settle()
    assert results([first, second]) == [[1], None]
    group.ready = [2]
    group.wake()
    await group.host.clock.settle()
    assert results([first, second]) == [[1], [2]]
    assert not group.waiters


async def test_a_fetch_that_is_paused_when_woken_wakes_the_next() -> None:
    """It waits on for its own resume, and the message goes to the other."""
    group = Group()
    [(paused, first), (_, second)] = await started(group, 2)
    group.ready = [1]
    group.wake()
    paused.pause()
    await group.host.clock.settle()
    assert results([first, second]) == [None, [1]]
    group.ready = [2]
    group.wake()
    await group.host.clock.settle()
    assert not first.done()
    paused.resume()
    await group.host.clock.settle()
    assert results([first]) == [[2]]


async def test_a_fetch_that_is_cancelled_when_woken_wakes_the_next() -> None:
    """The message is not lost with the cancelled fetch."""
    group = Group()
    [(_, first), (_, second)] = await started(group, 2)
    group.ready = [1]
    group.wake()
    first.cancel()
    await group.host.clock.settle()
    assert results([first, second]) == [None, [1]]


async def test_a_fetch_that_leaves_messages_wakes_the_next() -> None:
    """A fetch takes no more than its limit."""
    group = Group()
    [(_, first), (_, second)] = await started(group, 2)
    group.ready = [1, 2]
    group.wake()
    await group.host.clock.settle()
    assert results([first, second]) == [[1], [2]]


async def test_closing_a_subscription_ends_only_its_own_fetch() -> None:
    """A later fetch of it returns at once."""
    group = Group()
    [(closed, first), (_, second)] = await started(group, 2)
    await closed.close()
    await closed.close()
    await group.host.clock.settle()
    assert results([first, second]) == [[], None]
    assert await closed.fetch(1, 60) == []
    group.host.is_closing = True
    group.waiters.wake_all()
    await group.host.clock.settle()
    assert results([second]) == [[]]


async def test_the_waiting_fetches_expire_in_the_order_of_their_deadlines() -> None:
    """`expire` wakes those that are due, and returns the earliest deadline of the others."""
    group = Group()
    subscription = GroupSubscription(group)
    fetches = [asyncio.create_task(subscription.fetch(1, seconds)) for seconds in (10, 5, 20)]
    await group.host.clock.settle()
    assert group.waiters.wanted() == 3
    await group.host.clock.advance(10)
    assert group.waiters.expire(10) == 20
    await group.host.clock.settle()
    assert results(fetches) == [[], [], None]
    subscription.pause()
    assert group.waiters.wanted() == 0
    fetches[2].cancel()
    await group.host.clock.settle()
    assert not group.waiters
