"""
A consumer group as one process sees it: a pull consumer on each stream that it subscribes to, and the subscriptions of
this process, which share what those receive.
"""

from __future__ import annotations

__all__ = ["ConsumerGroup", "GroupHost"]

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from bus.fetch_waiters import FetchWaiters, GroupSubscription
from bus.jetstream.admin.topology import ConsumerPlan
from bus.jetstream.pull_consumer import PullConsumer
from bus.port import Clock, DeadLetter, Delivery


class GroupHost(Protocol):
    """What a consumer group needs from the bus."""

    clock: Clock
    ack_wait_seconds: float
    max_tries: int
    is_closing: bool
    send: Callable[..., None]
    """Send a body to a subject, optionally with a reply subject."""

    def check_idle(self) -> None:
        """Let the bus close if nothing is in hand any more."""

    def rebind(self, consumer: PullConsumer, reason: str) -> None:
        """Verify *consumer* on the server once more and subscribe again."""

    def dead_letter(self, dead_letter: DeadLetter, on_stored: Callable[[], None], extend: Callable[[], bool]) -> None:
        """Store *dead_letter*; see `bus.dead_letter_queue.DeadLetterQueue.put`."""

    async def leave(self, group: ConsumerGroup) -> None:
        """Stop receiving for *group*: its last subscription in this process is closed."""


class ConsumerGroup:
    """One consumer in this process: its pull consumers, its subscriptions, and their waiting fetches."""

    def __init__(self, host: GroupHost, name: str) -> None:
        self.host = host
        self.name = name
        self.clock = host.clock
        self.ack_wait_seconds = host.ack_wait_seconds
        self.max_tries = host.max_tries
        self.send = host.send
        self.check_idle = host.check_idle
        self.consumers: list[PullConsumer] = []
        self.subscriptions: dict[GroupSubscription[ConsumerGroup], None] = {}
        self.waiters = FetchWaiters()
        self.is_standby = False

    def subscribe(self) -> GroupSubscription[ConsumerGroup]:
        """Return a new subscription."""
        subscription = GroupSubscription(self)
        self.subscriptions[subscription] = None
        return subscription

    def change(self, plans: Sequence[ConsumerPlan]) -> tuple[list[PullConsumer], list[PullConsumer]]:
        """Have one pull consumer for each of *plans* from now on; return those that are new and those to be abandoned."""
        by_plan = {consumer.plan: consumer for consumer in self.consumers}
        added = [PullConsumer(plan, self) for plan in plans if plan not in by_plan]
        removed = [consumer for plan, consumer in by_plan.items() if plan not in plans]
        self.consumers = [consumer for consumer in self.consumers if consumer not in removed] + added
        return added, removed

    # For subscriptions

    def take(self, subscription: GroupSubscription[ConsumerGroup], limit: int, now: float) -> list[Delivery]:
        """
        Deliver up to *limit* ready messages to *subscription*; if none is ready, request as many.

        The pull consumers take turns at being the first to deliver.
        """
        batch: list[Delivery] = []
        for consumer in self.consumers:
            if consumer.ready:
                batch += consumer.take(subscription, limit - len(batch), now)
        if not batch:
            self._request(self.consumers, limit)
        elif len(self.consumers) > 1:
            self.consumers.append(self.consumers.pop(0))
        return batch

    def wake(self) -> None:
        """Wake one waiting fetch if a message is ready."""
        if any(consumer.ready for consumer in self.consumers):
            self.waiters.wake_one()

    def resume(self) -> None:
        """Request what the waiting fetches want, and wake one if a message is ready."""
        self._request(self.consumers)
        self.wake()

    async def wait(self, woken: asyncio.Future[None], deadline: float) -> None:
        """Return once *woken* is done, or at *deadline*; real time passes, whatever the clock."""
        await asyncio.wait((woken,), timeout=deadline - self.clock.monotonic())

    async def remove(self, subscription: GroupSubscription[ConsumerGroup]) -> None:
        """Return to the server what *subscription* has in hand; the last one to go unbinds the pull consumers."""
        self.subscriptions.pop(subscription, None)
        for consumer in self.consumers:
            consumer.return_in_flight(subscription)
        if not self.subscriptions:
            await self.host.leave(self)

    # For pull consumers

    def message_available(self, consumer: PullConsumer) -> None:
        """Let a waiting fetch take what is ready in *consumer*; request more if others wait."""
        if consumer.ready:
            self.waiters.wake_one()
        if self.waiters and not consumer.outstanding:
            self.request_more(consumer)

    def request_more(self, consumer: PullConsumer) -> None:
        """Request from *consumer* what the waiting fetches want."""
        self._request((consumer,))

    def rebind(self, consumer: PullConsumer, reason: str) -> None:
        self.host.rebind(consumer, reason)

    def dead_letter(self, dead_letter: DeadLetter, on_stored: Callable[[], None], extend: Callable[[], bool]) -> None:
        self.host.dead_letter(dead_letter, on_stored, extend)

    def _request(self, consumers: Sequence[PullConsumer], more: int = 0) -> None:
        """Request from each of *consumers* what the waiting fetches want, and *more*, beyond what is ready."""
        wanted = more + self.waiters.wanted()
        if wanted:
            wanted -= sum(len(consumer.ready) for consumer in self.consumers)
            if wanted > 0:
                for consumer in consumers:
                    consumer.request(wanted, self.is_standby)
