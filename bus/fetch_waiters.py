"""
Fetch calls that wait for a message, and the subscription that makes them; both adapters share them.

A message wakes one waiting fetch. A fetch that has been woken and returns without taking the message (it was
cancelled, its subscription was paused, or it had enough) wakes the next one, so that no message is left lying while
another fetch waits for it.
"""

from __future__ import annotations

__all__ = ["FetchGroup", "FetchHost", "FetchWaiters", "GroupSubscription"]

import asyncio
from math import inf
from typing import Any, Generic, Protocol, TypeVar

from bus.port import Clock, Delivery


class FetchHost(Protocol):
    """What a subscription needs from the bus."""

    clock: Clock
    is_closing: bool


class FetchGroup(Protocol):
    """What a subscription needs from its consumer group."""

    name: str
    waiters: FetchWaiters
    is_standby: bool
    """Whether the latest fetch leaves the messages to the group's other members; see `bus.port.Subscription.fetch`."""

    @property
    def host(self) -> FetchHost:
        """The bus."""

    def take(self, subscription: GroupSubscription[Any], limit: int, now: float) -> list[Delivery]:
        """Deliver up to *limit* messages to *subscription*; an empty list when none is ready."""

    def wake(self) -> None:
        """Wake one waiting fetch if a message is ready."""

    async def wait(self, woken: asyncio.Future[None], deadline: float) -> None:
        """Return once *woken* is done, or at *deadline* on the bus's clock."""

    def resume(self) -> None:
        """Take up delivery again: a subscription is no longer paused."""

    async def remove(self, subscription: GroupSubscription[Any]) -> None:
        """Return the messages that *subscription* holds, and forget it."""


class FetchWaiters(dict[asyncio.Future[None], tuple["GroupSubscription[Any]", int, float]]):
    """
    The waiting fetches of one group, the longest waiting first: subscription, limit and deadline of each.

    It is a dict because a publish asks for each message whether any fetch waits.
    """

    __slots__ = ()

    def wake_one(self) -> None:
        """Wake the first fetch whose subscription is not paused."""
        for woken, (subscription, _, _) in self.items():
            if not subscription.is_paused and not woken.done():
                del self[woken]
                woken.set_result(None)
                return

    def wake_all(self, of: GroupSubscription[Any] | None = None) -> None:
        """Wake every fetch, or those *of* one subscription."""
        for woken, (subscription, _, _) in self.items():
            if not woken.done() and (of is None or subscription is of):
                woken.set_result(None)

    def expire(self, now: float) -> float:
        """Wake every fetch whose deadline has passed, and return the earliest of the other deadlines."""
        next_at = inf
        for woken, (_, _, deadline) in self.items():
            if deadline > now:
                next_at = min(next_at, deadline)
            elif not woken.done():
                woken.set_result(None)
        return next_at

    def wanted(self) -> int:
        """Return how many messages the fetches wait for, those of paused subscriptions excluded."""
        return sum(limit for subscription, limit, _ in self.values() if not subscription.is_paused)


G = TypeVar("G", bound=FetchGroup)


class GroupSubscription(Generic[G]):
    """One member of a consumer group; see `bus.port.Subscription`."""

    __slots__ = ("_is_closed", "group", "is_paused")

    def __init__(self, group: G) -> None:
        self.group = group
        self._is_closed = False
        self.is_paused = False

    @property
    def consumer(self) -> str:
        return self.group.name

    async def fetch(self, limit: int, wait_seconds: float, is_standby: bool = False) -> list[Delivery]:
        if limit < 1:
            raise ValueError(f"cannot fetch {limit} messages")
        group = self.group
        group.is_standby = is_standby
        host = group.host
        waiters = group.waiters
        now = host.clock.monotonic()
        deadline = now + wait_seconds
        try:
            while not (self._is_closed or host.is_closing):
                if not self.is_paused and (batch := group.take(self, limit, now)):
                    return batch
                if now >= deadline:
                    break
                if waiters:
                    group.wake()
                woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                waiters[woken] = (self, limit, deadline)
                try:
                    await group.wait(woken, deadline)
                finally:
                    waiters.pop(woken, None)
                now = host.clock.monotonic()
            return []
        finally:
            # This fetch may have been woken for a message that it has not taken.
            if waiters:
                group.wake()

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self.group.resume()

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.group.waiters.wake_all(self)
            await self.group.remove(self)
