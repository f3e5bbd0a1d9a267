"""
Groups of the memory bus: what waits for a consumer, who holds what, and for how long.

A message is seen from three sides:

- its *post* is what publishers wait for, and what recognises a copy;
- each group has its own *copy*, which is ready, held, delayed or over;
- each time a copy is handed out, that is a *delivery*. A copy knows its present holder, because an earlier one may
  still answer.

Queue and heap are never searched: a copy that has moved on leaves its old place behind, and whoever comes by there sees
from its state that the place is empty.
"""

from __future__ import annotations

__all__ = ["DELAYED", "DELIVERED", "NO_ANSWER", "READY", "SETTLED", "ConsumerGroup", "Delivery", "GroupMessage", "GroupSubscription", "Publication"]

import asyncio
from collections import deque
from math import inf
from typing import TYPE_CHECKING

from attrs import define

from bus import port
from bus.port import Message

if TYPE_CHECKING:
    from bus.memory.bus import MemoryBus

NO_ANSWER = "no_answer"
"""The error of a dead letter whose last holder never said what became of it."""

READY, DELIVERED, DELAYED, SETTLED = range(4)


@define(eq=False)
class Publication:
    """A message as its publishers see it: how many groups have yet to settle it, and who waits for that."""

    id: str
    at: float
    unsettled: int
    future: asyncio.Future[None] | None
    followers: list[asyncio.Future[None]] | None = None


@define(eq=False)
class GroupMessage:
    """A message as one group sees it. Over means settled, or given up and on its way to the dead letters."""

    message: Message
    post: Publication
    group: ConsumerGroup
    state: int = READY
    tries: int = 0
    first_at: float = 0.0
    holder: Delivery | None = None


@define(eq=False)
class Delivery:
    """One handing out of a copy."""

    message: Message
    tries: int
    _copy: GroupMessage
    _member: GroupSubscription
    _overdue_at: float
    _is_answered: bool = False

    async def ack(self) -> None:
        if self._is_answered:
            return
        self._is_answered = True
        copy = self._copy
        if copy.state != SETTLED:
            group = copy.group
            if copy.holder is not None:
                group.let_go(copy)
            copy.state = SETTLED
            group.bus.settle(copy.post)

    async def nak(self, delay_seconds: float, *, error: str = "failed", detail: str = "") -> None:
        if self._is_answered:
            return
        self._is_answered = True
        copy = self._copy
        if copy.holder is not self and (copy.holder is not None or copy.state != READY):
            return  # too late, and somebody has it already: it has come again, which is all that was asked
        if copy.tries >= copy.group.bus.max_tries:
            copy.group.bus.give_up(copy, error, detail)
        else:
            copy.group.put_back(copy, delay_seconds)

    async def term(self, error: str, detail: str = "") -> None:
        if self._is_answered:
            return
        self._is_answered = True
        if self._copy.state != SETTLED:
            self._copy.group.bus.give_up(self._copy, error, detail)

    async def in_progress(self) -> None:
        copy = self._copy
        if not self._is_answered and (copy.holder is self or copy.state == READY):
            copy.group.hold(copy, self)


class ConsumerGroup:
    """One consumer: what waits for it, what is in its members' hands, and which of them wait for more."""

    __slots__ = ("bus", "in_hand", "name", "ready", "subjects", "waiters")

    def __init__(self, bus: MemoryBus, name: str) -> None:
        self.bus = bus
        self.name = name
        self.subjects: tuple[str, ...] = ()
        self.ready: deque[GroupMessage] = deque()
        self.in_hand: dict[Delivery, None] = {}
        self.waiters: dict[asyncio.Future[None], tuple[GroupSubscription, float]] = {}

    def hold(self, copy: GroupMessage, delivery: Delivery) -> None:
        """Leave *copy* with *delivery* for a whole ``ack_wait`` from now."""
        bus = self.bus
        copy.state, copy.holder = DELIVERED, delivery
        delivery._overdue_at = bus.clock.monotonic() + bus.ack_wait_seconds
        self.in_hand.pop(delivery, None)
        self.in_hand[delivery] = None  # at the end, so that the order of the dict stays that of time
        bus.wake_at(delivery._overdue_at)

    def let_go(self, copy: GroupMessage) -> None:
        """Take *copy* out of its holder's hands."""
        if copy.holder is not None:
            self.in_hand.pop(copy.holder, None)
            copy.holder = None
            if self.bus.is_closing:
                self.bus.look_whether_idle()

    def put_back(self, copy: GroupMessage, delay_seconds: float = 0.0, *, first: bool = False) -> None:
        """Offer *copy* again after *delay_seconds*; as the first of all, if so wished."""
        self.let_go(copy)
        if delay_seconds > 0:
            copy.state = DELAYED
            self.bus.delay(copy, delay_seconds)
            return
        copy.state = READY
        if first:
            self.ready.appendleft(copy)
        else:
            self.ready.append(copy)
        self.wake()

    def wake(self) -> None:
        """Wake one `fetch` that may take what is ready, if there is either."""
        if self.ready:
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

    def expire(self, now: float) -> float:
        """Take back what is overdue, wake who has waited enough, and return when to look again."""
        overdue = []
        next_at = inf
        for delivery in self.in_hand:
            if delivery._overdue_at > now:
                next_at = delivery._overdue_at
                break
            overdue.append(delivery)
        for delivery in reversed(overdue):
            copy = delivery._copy
            if copy.tries < self.bus.max_tries:
                self.put_back(copy, first=True)
            else:
                detail = f"no answer within {self.bus.ack_wait_seconds:g} s, at try {copy.tries}"
                self.bus.give_up(copy, NO_ANSWER, detail)
        for future, (_, deadline) in self.waiters.items():
            if deadline > now:
                next_at = min(next_at, deadline)
            elif not future.done():
                future.set_result(None)
        return next_at


class GroupSubscription:
    """A subscription."""

    __slots__ = ("_group", "_is_closed", "is_paused")

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
        now = bus.clock.monotonic()
        deadline = now + wait_seconds
        try:
            while not (self._is_closed or bus.is_closing):
                if group.ready and not self.is_paused and (batch := self._take(limit, now)):
                    return batch
                if now >= deadline:
                    break
                await self._wait(deadline)
                now = bus.clock.monotonic()
            return []
        finally:
            # We may have been woken for something that we did not take: cancelled, paused, or our hands were full.
            if group.waiters:
                group.wake()

    def _take(self, limit: int, now: float) -> list[port.Delivery]:
        group = self._group
        bus, ready, in_hand = group.bus, group.ready, group.in_hand
        overdue_at = now + bus.ack_wait_seconds
        batch: list[port.Delivery] = []
        while ready and len(batch) < limit:
            copy = ready.popleft()
            if copy.state != READY:
                continue
            copy.tries += 1
            if copy.tries == 1:
                copy.first_at = now
            delivery = Delivery(copy.message, copy.tries, copy, self, overdue_at)
            copy.state = DELIVERED
            copy.holder = delivery
            in_hand[delivery] = None
            batch.append(delivery)
        if overdue_at < bus.alarm_at:
            bus.wake_at(overdue_at)
        return batch

    async def _wait(self, deadline: float) -> None:
        group = self._group
        group.wake()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        group.waiters[future] = (self, deadline)
        group.bus.wake_at(deadline)
        try:
            await future
        finally:
            group.waiters.pop(future, None)

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self._group.wake()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        group = self._group
        group.wake_all(self)
        for delivery in reversed([d for d in group.in_hand if d._member is self]):
            # The last try cannot be handed to anybody else; whoever has it may still answer in time.
            if delivery._copy.tries < group.bus.max_tries:
                group.put_back(delivery._copy, first=True)
