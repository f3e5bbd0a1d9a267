"""
A group as one process sees it: its durables, one on each stream that it hears, and its members here, who share them.
"""

from __future__ import annotations

__all__ = ["ConsumerGroup", "GroupSubscription"]

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bus import port
from bus.jetstream.admin.topology import ConsumerPlan
from bus.jetstream.delivery import Delivery
from bus.jetstream.pull_consumer import PullConsumer

if TYPE_CHECKING:
    from bus.jetstream.bus import JetStreamBus


class ConsumerGroup:
    """The members of one consumer in this process, and who of them waits for how much."""

    def __init__(self, bus: JetStreamBus, name: str) -> None:
        self.bus = bus
        self.name = name
        self.durables: list[PullConsumer] = []
        self.members: dict[GroupSubscription, None] = {}
        self.waiters: dict[asyncio.Future[None], tuple[GroupSubscription, int]] = {}

    def change(self, plans: Sequence[ConsumerPlan]) -> tuple[list[PullConsumer], list[PullConsumer]]:
        """Hear *plans* from now on; return the durables that are new, and those that are left."""
        there = {durable.plan: durable for durable in self.durables}
        fresh = [PullConsumer(plan, self) for plan in plans if plan not in there]
        left = [durable for plan, durable in there.items() if plan not in plans]
        self.durables = [durable for durable in self.durables if durable not in left] + fresh
        return fresh, left

    def take(self, member: GroupSubscription, limit: int) -> list[Delivery]:
        """Hand *member* up to *limit* of what has come, from each durable in turn first."""
        now = self.bus.clock.monotonic()
        batch: list[Delivery] = []
        for durable in self.durables:
            if durable.ready:
                batch += durable.take(member, limit - len(batch), now)
        if batch and len(self.durables) > 1:
            self.durables.append(self.durables.pop(0))
        return batch

    def ask(self, durable: PullConsumer | None = None, more: int = 0) -> None:
        """Ask *durable*, or all of them, for as much as members wait for, and *more*."""
        wanted = more + sum(limit for member, limit in self.waiters.values() if not member.is_paused)
        if wanted:
            wanted -= sum(len(each.ready) for each in self.durables)
            if wanted > 0:
                for each in self.durables if durable is None else (durable,):
                    each.ask(wanted)

    def arrived(self, durable: PullConsumer) -> None:
        """Wake one who waits; if others wait still, ask for more."""
        if durable.ready:
            self.wake()
        if self.waiters and not durable.outstanding:
            self.ask(durable)

    def wake(self) -> None:
        """Wake one `fetch` that may take something."""
        for future, (member, _) in self.waiters.items():
            if not member.is_paused and not future.done():
                del self.waiters[future]
                future.set_result(None)
                return

    def wake_all(self, member: GroupSubscription | None = None) -> None:
        """Wake every waiting `fetch`, or every one of *member*."""
        for future, (waiting, _) in self.waiters.items():
            if not future.done() and (member is None or waiting is member):
                future.set_result(None)


class GroupSubscription:
    """A subscription; see `bus.port.Subscription`."""

    def __init__(self, group: ConsumerGroup) -> None:
        self._group = group
        self._is_closed = False
        self.is_paused = False

    @property
    def consumer(self) -> str:
        return self._group.name

    async def fetch(self, limit: int, wait_seconds: float) -> list[port.Delivery]:
        if limit < 1:
            raise ValueError(f"cannot fetch {limit} messages")
        group = self._group
        bus = group.bus
        deadline = bus.clock.monotonic() + wait_seconds
        try:
            while not (self._is_closed or bus.is_closing):
                if not self.is_paused:
                    if batch := group.take(self, limit):
                        return list(batch)
                    group.ask(more=limit)
                left_seconds = deadline - bus.clock.monotonic()
                if left_seconds <= 0:
                    break
                await self._wait(limit, left_seconds)
            return []
        finally:
            # We may have been woken for something that we did not take: cancelled, paused, or our hands were full.
            if group.waiters and any(durable.ready for durable in group.durables):
                group.wake()

    async def _wait(self, limit: int, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._group.waiters
        waiters[future] = (self, limit)
        try:
            await asyncio.wait((future,), timeout=seconds)
        finally:
            waiters.pop(future, None)

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self._group.ask()
        self._group.wake()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        group = self._group
        group.members.pop(self, None)
        group.wake_all(self)
        for durable in group.durables:
            durable.hand_back(self)
        if not group.members:
            await group.bus.leave(group)
