"""
The bus for one process.

Everything lives on the event loop, in deques and dicts: a message costs a few small objects, and no task, timer or log
line of its own. What may have to happen later (an answer overdue, a delay over, a `fetch` that has waited enough, a
dead letter to be tried again) shares one alarm, set for the earliest of them. All messages get the same ``ack_wait``, so
those in hand are overdue in the order in which they were handed out, and the alarm need only look at the first.
"""

from __future__ import annotations

__all__ = ["NO_ANSWER", "MemoryBus"]

import asyncio
import heapq
import itertools
import logging
from collections import Counter, deque
from collections.abc import Sequence
from datetime import timedelta
from math import inf

from attrs import define

from bus.errors import BusClosed
from bus.ids import derived_id
from bus.memory.consumer_group import (
    DELAYED,
    NO_ANSWER,
    READY,
    SETTLED,
    ConsumerGroup,
    GroupMessage,
    GroupSubscription,
    Publication,
)
from bus.port import ACK_WAIT_SECONDS, MAX_TRIES, Clock, DeadLetter, DeadLetters, Message, Subscription

_LAY_DOWN_AGAIN_MAX_SECONDS = 30.0
_log = logging.getLogger(__name__)


@define(eq=False)
class _Letter:
    """A dead letter that is not laid down yet."""

    dead_letter: DeadLetter
    copy: GroupMessage
    failures: int = 0


class MemoryBus:
    """
    The bus for one process; see `bus.port.Bus` for what it promises.

    It remembers the ids of the last *dedup_max* settled messages, none longer than *dedup_seconds* after it was
    published; an id that is still unsettled it knows for as long as that lasts. Nothing outlives the process.
    """

    def __init__(
        self,
        clock: Clock,
        dead_letters: DeadLetters,
        *,
        ack_wait_seconds: float = ACK_WAIT_SECONDS,
        max_tries: int = MAX_TRIES,
        dedup_seconds: float = 120.0,
        dedup_max: int = 32_768,
    ) -> None:
        self.clock = clock
        self._dead_letters = dead_letters
        self.ack_wait_seconds = ack_wait_seconds
        self.max_tries = max_tries
        self._dedup_seconds = dedup_seconds
        self._dedup_max = dedup_max

        self._groups: dict[str, ConsumerGroup] = {}
        self._hearers: dict[str, tuple[ConsumerGroup, ...]] = {}
        self._posts: dict[str, Publication] = {}
        self._window: deque[Publication] = deque()
        self._published_at = 0.0

        self._ordinals = itertools.count()
        self._delayed: list[tuple[float, int, GroupMessage]] = []
        self._letters: list[tuple[float, int, _Letter]] = []
        self._laying: asyncio.Task[None] | None = None
        self._alarm: asyncio.Task[None] | None = None
        self.alarm_at = inf

        self.is_closing = False
        self._is_closed = False
        self._closers: dict[asyncio.Future[None], float] = {}

    @property
    def is_connected(self) -> bool:
        return not self.is_closing

    def groups(self) -> list[tuple[str, tuple[str, ...], int]]:
        """Return every group's name, its subjects, and how many messages it has yet to settle."""
        waiting = [copy for group in self._groups.values() for copy in group.ready if copy.state == READY]
        waiting += [copy for _, _, copy in self._delayed if copy.state == DELAYED]
        counts = Counter(copy.group.name for copy in waiting)
        return [(name, group.subjects, counts[name] + len(group.in_hand)) for name, group in self._groups.items()]

    @property
    def problems(self) -> Sequence[str]:
        return ()

    def publish(self, message: Message) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.is_closing:
            _refuse(future)
            return future
        self._published_at = now = self.clock.monotonic()
        post = self._posts.get(message.id)
        if post is not None and (post.unsettled or now - post.at < self._dedup_seconds):
            if not post.unsettled:
                future.set_result(None)
            elif post.followers is None:
                post.followers = [future]
            else:
                post.followers.append(future)
            return future
        groups = self._hearers.get(message.subject, ())
        self._posts[message.id] = post = Publication(message.id, now, len(groups), future)
        for group in groups:
            group.ready.append(GroupMessage(message, post, group))
            if group.waiters:
                group.wake()
        if not groups:
            post.unsettled = 1
            self.settle(post)
        return future

    async def subscribe(self, consumer: str, subjects: Sequence[str]) -> Subscription:
        if self.is_closing:
            raise BusClosed("the bus is closed")
        group = self._groups.get(consumer)
        if group is None:
            self._groups[consumer] = group = ConsumerGroup(self, consumer)
        group.subjects = tuple(subjects)
        hearers: dict[str, dict[ConsumerGroup, None]] = {}
        for each in self._groups.values():
            for subject in each.subjects:
                hearers.setdefault(subject, {})[each] = None
        self._hearers = {subject: tuple(groups) for subject, groups in hearers.items()}
        return GroupSubscription(group)

    async def close(self, grace_seconds: float = 5.0) -> None:
        if not self.is_closing:
            self.is_closing = True
            for group in self._groups.values():
                group.wake_all()
        if not self._is_idle():
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._closers[idle] = deadline = self.clock.monotonic() + grace_seconds
            self.wake_at(deadline)
            try:
                await idle
            finally:
                self._closers.pop(idle, None)
        await self._end()

    async def _end(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._release_closers()
            for post in self._posts.values():
                if post.unsettled:
                    _refuse(post.future)
                    for follower in post.followers or ():
                        _refuse(follower)
            self._posts.clear()
            self._window.clear()
            self._delayed.clear()
            self._letters.clear()
            for group in self._groups.values():
                group.ready.clear()
                group.in_hand.clear()
        tasks = [task for task in (self._alarm, self._laying) if task is not None and task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        # A cancelled task ends within a few turns of the loop. A store that ignores its cancellation must not hold us.
        for _ in range(10):
            if all(task.done() for task in tasks):
                break
            await asyncio.sleep(0)

    def _is_idle(self) -> bool:
        return self._is_closed or not (self._laying or self._letters or any(group.in_hand for group in self._groups.values()))

    def look_whether_idle(self) -> None:
        if self._closers and self._is_idle():
            self._release_closers()

    def _release_closers(self) -> None:
        for idle in self._closers:
            if not idle.done():
                idle.set_result(None)

    # What becomes of messages

    def settle(self, post: Publication) -> None:
        """Note that one more group is done with *post*."""
        post.unsettled -= 1
        if post.unsettled or self._is_closed:
            return
        future, post.future = post.future, None
        if future is not None and not future.done():
            future.set_result(None)
        if post.followers is not None:
            for follower in post.followers:
                if not follower.done():
                    follower.set_result(None)
            post.followers = None
        window = self._window
        window.append(post)
        horizon = self._published_at - self._dedup_seconds
        while window and (window[0].at <= horizon or len(window) > self._dedup_max):
            forgotten = window.popleft()
            if self._posts.get(forgotten.id) is forgotten:
                del self._posts[forgotten.id]

    def delay(self, copy: GroupMessage, delay_seconds: float) -> None:
        due_at = self.clock.monotonic() + delay_seconds
        heapq.heappush(self._delayed, (due_at, next(self._ordinals), copy))
        self.wake_at(due_at)

    def give_up(self, copy: GroupMessage, error: str, detail: str) -> None:
        """Make *copy* a dead letter. Its group has settled it only once the letter is laid down."""
        copy.state = SETTLED
        last_seen = self.clock.now()
        now = self.clock.monotonic()
        dead_letter = DeadLetter(
            id=derived_id(copy.message.id, copy.group.name),
            consumer=copy.group.name,
            message=copy.message,
            error=error,
            detail=detail,
            attempts=copy.tries,
            first_seen=last_seen - timedelta(seconds=now - copy.first_at),
            last_seen=last_seen,
        )
        if not self._is_closed:
            heapq.heappush(self._letters, (now, next(self._ordinals), _Letter(dead_letter, copy)))
            if self._laying is None:
                self._laying = asyncio.get_running_loop().create_task(self._lay_down(), name="dead letters")
        copy.group.let_go(copy)

    async def _lay_down(self) -> None:
        """Lay down every dead letter that is due, one after the other; those that fail are due again later."""
        while self._letters and self._letters[0][0] <= self.clock.monotonic():
            _, _, waiting = heapq.heappop(self._letters)
            try:
                await self._dead_letters.add(waiting.dead_letter)
            except (Exception, asyncio.CancelledError) as error:  # whatever it was, the letter is not kept and must not be lost
                if _is_cancelled(error):
                    raise
                waiting.failures += 1
                again_seconds = min(2.0 ** (waiting.failures - 1), _LAY_DOWN_AGAIN_MAX_SECONDS)
                heapq.heappush(self._letters, (self.clock.monotonic() + again_seconds, next(self._ordinals), waiting))
                _log.warning("dead letter %s is not laid down, next try in %g s: %r", waiting.dead_letter.id, again_seconds, error)
            else:
                self.settle(waiting.copy.post)
        self._laying = None
        if self._letters:
            self.wake_at(self._letters[0][0])
        self.look_whether_idle()

    # The alarm

    def wake_at(self, at: float) -> None:
        """See to it that `_tick` runs at *at*, or before."""
        if at < self.alarm_at and not self._is_closed:
            if self._alarm is not None:
                self._alarm.cancel()
            self.alarm_at = at
            self._alarm = asyncio.get_running_loop().create_task(self._ring(at), name="alarm")

    async def _ring(self, at: float) -> None:
        while (left_seconds := at - self.clock.monotonic()) > 0:
            await self.clock.sleep(left_seconds)
        self._alarm, self.alarm_at = None, inf
        self.tick(self.clock.monotonic())

    def tick(self, now: float) -> None:
        """Do whatever is due, and set the alarm for what is due next."""
        delayed = self._delayed
        while delayed and delayed[0][0] <= now:
            _, _, copy = heapq.heappop(delayed)
            if copy.state == DELAYED:
                copy.group.put_back(copy)
        next_at = min((group.expire(now) for group in self._groups.values()), default=inf)
        for idle, deadline in self._closers.items():
            if deadline > now:
                next_at = min(next_at, deadline)
            elif not idle.done():
                idle.set_result(None)
        if delayed:
            next_at = min(next_at, delayed[0][0])
        if self._letters and self._laying is None:
            if self._letters[0][0] <= now:
                self._laying = asyncio.get_running_loop().create_task(self._lay_down(), name="dead letters")
            else:
                next_at = min(next_at, self._letters[0][0])
        self.wake_at(next_at)


def _refuse(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_exception(BusClosed("the bus is closed"))
        future.exception()  # seen: a publisher that has left must not make the loop complain


def _is_cancelled(error: BaseException) -> bool:
    """Tell whether *error* ends this very task, rather than something that the task waited for."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
