"""
The bus for one process.

Everything runs on the event loop, in deques and dicts: a message costs a few small objects, and no task, timer or log
line of its own. Whatever has to happen later (an ack deadline, the end of a delay, the deadline of a `fetch`, the retry
of a dead letter) shares one timer, which is set for the earliest of them. All deliveries have the same ``ack_wait``, so
their deadlines pass in the order of delivery, and the timer need only look at the first.
"""

from __future__ import annotations

__all__ = ["MemoryBus"]

import asyncio
import heapq
import itertools
from collections import Counter, deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from math import inf

from bus.dead_letter_queue import DeadLetterQueue
from bus.errors import BusClosed
from bus.fetch_waiters import GroupSubscription
from bus.memory.consumer_group import ConsumerGroup
from bus.memory.messages import DELAYED, READY, SETTLED, GroupMessage, Publication
from bus.port import ACK_WAIT_SECONDS, DEDUP_SECONDS, MAX_TRIES, Clock, DeadLetter, DeadLetters, Message, Subscription


class MemoryBus:
    """
    The bus for one process; see `bus.port.Bus` for what it promises.

    It recognises a duplicate by the id of the message. It keeps the id of an unsettled message until the message is settled,
    and the ids of the last *dedup_max* settled messages for up to *dedup_seconds* after they were published. Nothing is kept
    when the process ends.
    """

    def __init__(
        self,
        clock: Clock,
        dead_letters: DeadLetters,
        *,
        ack_wait_seconds: float = ACK_WAIT_SECONDS,
        max_tries: int = MAX_TRIES,
        dedup_seconds: float = DEDUP_SECONDS,
        dedup_max: int = 32_768,
    ) -> None:
        self.clock = clock
        self.ack_wait_seconds = ack_wait_seconds
        self.max_tries = max_tries
        self._dedup_seconds = dedup_seconds
        self._dedup_max = dedup_max

        self._groups: dict[str, ConsumerGroup] = {}
        self._groups_by_subject: dict[str, tuple[ConsumerGroup, ...]] = {}
        self._publications: dict[str, Publication] = {}
        self._settled: deque[Publication] = deque()
        self._published_at = 0.0
        self._started_at: datetime | None = None
        """The wall-clock time when the monotonic clock was 0, once it is needed."""

        self._ordinals = itertools.count()
        self._delayed: list[tuple[float, int, GroupMessage]] = []
        self._dead_letters = DeadLetterQueue(clock, dead_letters, on_idle=self._on_dead_letters_idle)
        self._timer: asyncio.Task[None] | None = None
        self.timer_at = inf

        self.is_closing = False
        self._is_closed = False
        self._closers: dict[asyncio.Future[None], float] = {}
        """A future for each call of `close` that waits, and its deadline."""

    @property
    def is_connected(self) -> bool:
        return not self.is_closing

    @property
    def problems(self) -> Sequence[str]:
        return ()

    def groups(self) -> list[tuple[str, tuple[str, ...], int]]:
        """Return every group's name, its subjects, and how many messages it has yet to settle."""
        waiting = [message for group in self._groups.values() for message in group.ready if message.state == READY]
        waiting += [message for _, _, message in self._delayed if message.state == DELAYED]
        counts = Counter(message.group.name for message in waiting)
        return [(name, group.subjects, counts[name] + len(group.in_hand)) for name, group in self._groups.items()]

    def publish(self, message: Message) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.is_closing:
            _reject(future)
            return future
        self._published_at = now = self.clock.monotonic()
        publication = self._publications.get(message.id)
        if publication is not None and (publication.unsettled or now - publication.at < self._dedup_seconds):
            if not publication.unsettled:
                future.set_result(None)
            elif publication.duplicate_futures is None:
                publication.duplicate_futures = [future]
            else:
                publication.duplicate_futures.append(future)
            return future
        groups = self._groups_by_subject.get(message.subject, ())
        self._publications[message.id] = publication = Publication(message.id, now, len(groups), future)
        for group in groups:
            group.ready.append(GroupMessage(message, publication, group))
            if group.waiters:
                group.waiters.wake_one()
        if not groups:
            publication.unsettled = 1
            self.settle(publication)
        return future

    async def subscribe(self, consumer: str, subjects: Sequence[str]) -> Subscription:
        if self.is_closing:
            raise BusClosed("the bus is closed")
        group = self._groups.get(consumer)
        if group is None:
            self._groups[consumer] = group = ConsumerGroup(self, consumer)
        group.subjects = tuple(subjects)
        by_subject: dict[str, dict[ConsumerGroup, None]] = {}
        for each in self._groups.values():
            for subject in each.subjects:
                by_subject.setdefault(subject, {})[each] = None
        self._groups_by_subject = {subject: tuple(groups) for subject, groups in by_subject.items()}
        return GroupSubscription(group)

    async def close(self, grace_seconds: float = 5.0) -> None:
        if not self.is_closing:
            self.is_closing = True
            for group in self._groups.values():
                group.waiters.wake_all()
        if not self._is_idle():
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._closers[idle] = deadline = self.clock.monotonic() + grace_seconds
            self.schedule(deadline)
            try:
                await idle
            finally:
                self._closers.pop(idle, None)
        await self._end()

    async def _end(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._end_closers()
            for publication in self._publications.values():
                if publication.unsettled:
                    _reject(publication.future)
                    for future in publication.duplicate_futures or ():
                        _reject(future)
            self._publications.clear()
            self._settled.clear()
            self._delayed.clear()
            for group in self._groups.values():
                group.ready.clear()
                group.in_hand.clear()
        timer = None if self._timer is asyncio.current_task() else self._timer
        if timer is not None:
            timer.cancel()
        tasks = [task for task in (timer, self._dead_letters.close()) if task is not None]
        # A cancelled task ends within a few turns of the loop. A store that ignores its cancellation must not delay the end.
        for _ in range(10):
            if all(task.done() for task in tasks):
                break
            await asyncio.sleep(0)

    def _is_idle(self) -> bool:
        return self._is_closed or (self._dead_letters.is_empty and not any(group.in_hand for group in self._groups.values()))

    def check_idle(self) -> None:
        """End every waiting `close` if nothing is in hand any more."""
        if self._closers and self._is_idle():
            self._end_closers()

    def _end_closers(self) -> None:
        for idle in self._closers:
            if not idle.done():
                idle.set_result(None)

    # Settling of a message

    def settle(self, publication: Publication) -> None:
        """Note that one more group has settled *publication*."""
        publication.unsettled -= 1
        if publication.unsettled or self._is_closed:
            return
        future, publication.future = publication.future, None
        if future is not None and not future.done():
            future.set_result(None)
        if publication.duplicate_futures is not None:
            for duplicate in publication.duplicate_futures:
                if not duplicate.done():
                    duplicate.set_result(None)
            publication.duplicate_futures = None
        settled = self._settled
        settled.append(publication)
        horizon = self._published_at - self._dedup_seconds
        while settled and (settled[0].at <= horizon or len(settled) > self._dedup_max):
            forgotten = settled.popleft()
            if self._publications.get(forgotten.id) is forgotten:
                del self._publications[forgotten.id]

    def delay(self, message: GroupMessage, delay_seconds: float) -> None:
        """Requeue *message* after *delay_seconds*, unless it is settled before."""
        due_at = self.clock.monotonic() + delay_seconds
        heapq.heappush(self._delayed, (due_at, next(self._ordinals), message))
        self.schedule(due_at)

    def dead_letter(self, message: GroupMessage, error: str, detail: str) -> None:
        """Make *message* a dead letter. Its group counts as having settled it once the dead letter is stored."""
        message.state = SETTLED
        now = self.clock.now()
        if self._started_at is None:
            self._started_at = now - timedelta(seconds=self.clock.monotonic())
        # Two readings of the clocks for each message would give two messages of one batch an order by chance.
        first_seen = min(now, self._started_at + timedelta(seconds=message.first_at))
        consumer = message.group.name
        dead_letter = DeadLetter.of(message.message, consumer, error, detail, message.tries, first_seen, now)
        self._dead_letters.put(dead_letter, partial(self.settle, message.publication))
        message.group.release(message)

    def _on_dead_letters_idle(self) -> None:
        self.schedule(self._dead_letters.next_at)
        self.check_idle()

    # The timer

    def schedule(self, at: float) -> None:
        """See to it that `tick` runs at *at* at the latest."""
        if at < self.timer_at and not self._is_closed:
            if self._timer is not None:
                self._timer.cancel()
            self.timer_at = at
            self._timer = asyncio.get_running_loop().create_task(self._fire(at), name="bus timer")

    async def _fire(self, at: float) -> None:
        while (left_seconds := at - self.clock.monotonic()) > 0:
            await self.clock.sleep(left_seconds)
        self._timer, self.timer_at = None, inf
        self.tick(self.clock.monotonic())

    def tick(self, now: float) -> None:
        """Do whatever is due, and set the timer for what is due next."""
        delayed = self._delayed
        while delayed and delayed[0][0] <= now:
            _, _, message = heapq.heappop(delayed)
            if message.state == DELAYED:
                message.group.requeue(message)
        next_at = min((group.expire(now) for group in self._groups.values()), default=inf)
        for idle, deadline in self._closers.items():
            if deadline > now:
                next_at = min(next_at, deadline)
            elif not idle.done():
                idle.set_result(None)
        if delayed:
            next_at = min(next_at, delayed[0][0])
        self._dead_letters.tick(now)
        self.schedule(min(next_at, self._dead_letters.next_at))


def _reject(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_exception(BusClosed("the bus is closed"))
        future.exception()  # retrieved: the loop must not complain if the publisher has stopped waiting
