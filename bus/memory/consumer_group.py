"""
Consumer groups of the memory bus: what is ready, what is delivered and until when, and which fetches wait.

Each delivery of a group message is an object of its own, because an earlier one may still be acknowledged after a later
one has been made. The current delivery is the one in `ConsumerGroup.in_hand`.

The queue is never searched: a message that is settled while it is ready stays in the queue, and is skipped when its turn
comes.
"""

from __future__ import annotations

__all__ = ["ConsumerGroup", "Delivery", "GroupHost"]

import asyncio
from collections import deque
from math import inf
from typing import Protocol

from attrs import define

from bus import port
from bus.fetch_waiters import FetchWaiters, GroupSubscription
from bus.memory.messages import DELAYED, DELIVERED, READY, SETTLED, GroupMessage, Publication
from bus.port import NO_ANSWER, Clock, Message


class GroupHost(Protocol):
    """What a consumer group needs from the bus."""

    clock: Clock
    ack_wait_seconds: float
    max_tries: int
    is_closing: bool
    timer_at: float
    """When the timer of the bus fires, on the monotonic clock."""

    def settle(self, publication: Publication) -> None:
        """Note that one more group has settled *publication*."""

    def delay(self, message: GroupMessage, delay_seconds: float) -> None:
        """Requeue *message* after *delay_seconds*, unless it is settled before."""

    def dead_letter(self, message: GroupMessage, error: str, detail: str) -> None:
        """Make *message* a dead letter."""

    def schedule(self, at: float) -> None:
        """See to it that the timer fires at *at* at the latest."""

    def check_idle(self) -> None:
        """Let the bus close if nothing is in hand any more."""


@define(eq=False)
class Delivery:
    """One delivery of a group message; see `bus.port.Delivery`."""

    message: Message
    tries: int
    _group_message: GroupMessage
    subscription: GroupSubscription[ConsumerGroup]
    overdue_at: float
    _is_answered: bool = False

    async def ack(self) -> None:
        if self._is_answered:
            return
        self._is_answered = True
        message = self._group_message
        if message.state != SETTLED:
            group = self.subscription.group
            if message.state == DELIVERED:
                group.release(message)
            message.state = SETTLED
            group.host.settle(message.publication)

    async def nak(self, delay_seconds: float, *, error: str = "failed", detail: str = "") -> None:
        if self._is_answered:
            return
        self._is_answered = True
        message, group = self._group_message, self.subscription.group
        if not self._is_current():
            return  # the message has been redelivered already, which is all that a nak requests
        if message.tries >= group.host.max_tries:
            group.host.dead_letter(message, error, detail)
        else:
            group.requeue(message, delay_seconds)

    async def term(self, error: str, detail: str = "") -> None:
        if self._is_answered:
            return
        self._is_answered = True
        if self._group_message.state != SETTLED:
            self.subscription.group.host.dead_letter(self._group_message, error, detail)

    async def in_progress(self) -> None:
        if not self._is_answered and self._is_current():
            self.subscription.group.lease(self._group_message, self)

    def _is_current(self) -> bool:
        """Return whether no later delivery has been made, and the message is not settled."""
        message = self._group_message
        return message.state == READY or self.subscription.group.in_hand.get(message) is self


class ConsumerGroup:
    """One consumer: the messages that are ready for it, its deliveries, and its waiting fetches."""

    __slots__ = ("host", "in_hand", "is_standby", "name", "ready", "subjects", "waiters")

    def __init__(self, host: GroupHost, name: str) -> None:
        self.host = host
        self.name = name
        self.subjects: tuple[str, ...] = ()
        self.ready: deque[GroupMessage] = deque()
        self.in_hand: dict[GroupMessage, Delivery] = {}
        """The current delivery of each delivered message, the first overdue first."""
        self.waiters = FetchWaiters()
        self.is_standby = False  # of no effect: all members are in this process

    def take(self, subscription: GroupSubscription[ConsumerGroup], limit: int, now: float) -> list[port.Delivery]:
        """Deliver up to *limit* ready messages to *subscription*."""
        batch: list[port.Delivery] = []
        ready, in_hand = self.ready, self.in_hand
        if not ready:
            return batch
        host = self.host
        overdue_at = now + host.ack_wait_seconds
        while ready and len(batch) < limit:
            message = ready.popleft()
            if message.state != READY:
                continue
            message.tries += 1
            if message.tries == 1:
                message.first_at = now
            message.state = DELIVERED
            in_hand[message] = delivery = Delivery(message.message, message.tries, message, subscription, overdue_at)
            batch.append(delivery)
        if overdue_at < host.timer_at:
            host.schedule(overdue_at)
        return batch

    def lease(self, message: GroupMessage, delivery: Delivery) -> None:
        """Make *delivery* the current one of *message*, for a whole ``ack_wait`` from now."""
        host = self.host
        message.state = DELIVERED
        delivery.overdue_at = host.clock.monotonic() + host.ack_wait_seconds
        self.in_hand.pop(message, None)
        self.in_hand[message] = delivery  # at the end, so that the dict stays in the order of deadlines
        host.schedule(delivery.overdue_at)

    def release(self, message: GroupMessage) -> None:
        """End the current delivery of *message*, if there is one."""
        if self.in_hand.pop(message, None) is not None and self.host.is_closing:
            self.host.check_idle()

    def requeue(self, message: GroupMessage, delay_seconds: float = 0.0, *, is_first: bool = False) -> None:
        """Make *message* ready again after *delay_seconds*; at the head of the queue if *is_first*."""
        self.release(message)
        if delay_seconds > 0:
            message.state = DELAYED
            self.host.delay(message, delay_seconds)
            return
        message.state = READY
        if is_first:
            self.ready.appendleft(message)
        else:
            self.ready.append(message)
        self.wake()

    def wake(self) -> None:
        """Wake one waiting fetch if a message is ready."""
        if self.ready:
            self.waiters.wake_one()

    def resume(self) -> None:
        self.wake()

    async def wait(self, woken: asyncio.Future[None], deadline: float) -> None:
        """Return once *woken* is done; the timer ends it at *deadline*."""
        self.host.schedule(deadline)
        await woken

    async def remove(self, subscription: GroupSubscription[ConsumerGroup]) -> None:
        """
        Requeue what *subscription* holds.

        A last try stays in hand: it cannot be delivered to another member, and its handler may still answer in time.
        """
        held = [message for message, delivery in self.in_hand.items() if delivery.subscription is subscription]
        for message in reversed(held):
            if message.tries < self.host.max_tries:
                self.requeue(message, is_first=True)

    def expire(self, now: float) -> float:
        """Take back the deliveries that are overdue, end the fetches whose time is over, and return when to do so next."""
        overdue = []
        next_at = inf
        for message, delivery in self.in_hand.items():
            if delivery.overdue_at > now:
                next_at = delivery.overdue_at
                break
            overdue.append(message)
        host = self.host
        for message in reversed(overdue):
            if message.tries < host.max_tries:
                self.requeue(message, is_first=True)
            else:
                host.dead_letter(message, NO_ANSWER, f"no answer within {host.ack_wait_seconds:g} s, at try {message.tries}")
        return min(next_at, self.waiters.expire(now))
