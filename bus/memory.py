"""
The bus for one process.

Everything lives on the event loop, in deques and dicts: a message costs a few small objects, and no task, timer or log
line of its own. What may have to happen later (an answer overdue, a delay over, a `fetch` that has waited enough, a
dead letter to be tried again) shares one alarm, set for the earliest of them. All messages get the same ``ack_wait``, so
those in hand are overdue in the order in which they were handed out, and the alarm need only look at the first.

A message is seen from three sides:

- its *post* is what publishers wait for, and what recognises a copy;
- each group has its own *copy*, which is ready, held, delayed or over;
- each time a copy is handed out, that is a *delivery*. A copy knows its present holder, because an earlier one may
  still answer.

Queue and heap are never searched: a copy that has moved on leaves its old place behind, and whoever comes by there sees
from its state that the place is empty.
"""

from __future__ import annotations

__all__ = ["NO_ANSWER", "MemoryBus"]

import asyncio
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from math import inf

from attrs import define

from bus.errors import BusClosed
from bus.ids import caused_id
from bus.port import ACK_WAIT_SECONDS, MAX_TRIES, Clock, DeadLetter, DeadLetters, Delivery, Message, Subscription

NO_ANSWER = "no_answer"
"""The error of a dead letter whose last holder never said what became of it."""

_READY, _HELD, _DELAYED, _OVER = range(4)
_LAY_DOWN_AGAIN_MAX_SECONDS = 30.0
_log = logging.getLogger(__name__)


@define(eq=False)
class _Post:
    """A message as its publishers see it: how many groups have yet to settle it, and who waits for that."""

    id: str
    at: float
    unsettled: int
    future: asyncio.Future[None] | None
    followers: list[asyncio.Future[None]] | None = None


@define(eq=False)
class _Copy:
    """A message as one group sees it. Over means settled, or given up and on its way to the dead letters."""

    message: Message
    post: _Post
    group: _Group
    state: int = _READY
    tries: int = 0
    first_at: float = 0.0
    holder: _Delivery | None = None


@define(eq=False)
class _Letter:
    """A dead letter that is not laid down yet."""

    letter: DeadLetter
    copy: _Copy
    failures: int = 0


@define(eq=False)
class _Delivery:
    """One handing out of a copy."""

    message: Message
    tries: int
    _copy: _Copy
    _member: _Member
    _overdue_at: float
    _is_answered: bool = False

    async def ack(self) -> None:
        if self._is_answered:
            return
        self._is_answered = True
        copy = self._copy
        if copy.state != _OVER:
            group = copy.group
            if copy.holder is not None:
                group.let_go(copy)
            copy.state = _OVER
            group.bus._settle(copy.post)

    async def nak(self, delay_seconds: float, *, error: str = "failed", detail: str = "") -> None:
        if self._is_answered:
            return
        self._is_answered = True
        copy = self._copy
        if copy.holder is not self and (copy.holder is not None or copy.state != _READY):
            return  # too late, and somebody has it already: it has come again, which is all that was asked
        if copy.tries >= copy.group.bus._max_tries:
            copy.group.bus._give_up(copy, error, detail)
        else:
            copy.group.put_back(copy, delay_seconds)

    async def term(self, error: str, detail: str = "") -> None:
        if self._is_answered:
            return
        self._is_answered = True
        if self._copy.state != _OVER:
            self._copy.group.bus._give_up(self._copy, error, detail)

    async def in_progress(self) -> None:
        copy = self._copy
        if not self._is_answered and (copy.holder is self or copy.state == _READY):
            copy.group.hold(copy, self)


class _Group:
    """One consumer: what waits for it, what is in its members' hands, and which of them wait for more."""

    __slots__ = ("bus", "in_hand", "name", "ready", "subjects", "waiters")

    def __init__(self, bus: MemoryBus, name: str) -> None:
        self.bus = bus
        self.name = name
        self.subjects: tuple[str, ...] = ()
        self.ready: deque[_Copy] = deque()
        self.in_hand: dict[_Delivery, None] = {}
        self.waiters: dict[asyncio.Future[None], tuple[_Member, float]] = {}

    def hold(self, copy: _Copy, delivery: _Delivery) -> None:
        """Leave *copy* with *delivery* for a whole ``ack_wait`` from now."""
        bus = self.bus
        copy.state, copy.holder = _HELD, delivery
        delivery._overdue_at = bus._clock.monotonic() + bus._ack_wait_seconds
        self.in_hand.pop(delivery, None)
        self.in_hand[delivery] = None  # at the end, so that the order of the dict stays that of time
        bus._wake_at(delivery._overdue_at)

    def let_go(self, copy: _Copy) -> None:
        """Take *copy* out of its holder's hands."""
        if copy.holder is not None:
            self.in_hand.pop(copy.holder, None)
            copy.holder = None
            if self.bus._is_closing:
                self.bus._look_whether_idle()

    def put_back(self, copy: _Copy, delay_seconds: float = 0.0, *, first: bool = False) -> None:
        """Offer *copy* again after *delay_seconds*; as the first of all, if so wished."""
        self.let_go(copy)
        if delay_seconds > 0:
            copy.state = _DELAYED
            self.bus._delay(copy, delay_seconds)
            return
        copy.state = _READY
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

    def wake_all(self, member: _Member | None = None) -> None:
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
            if copy.tries < self.bus._max_tries:
                self.put_back(copy, first=True)
            else:
                detail = f"no answer within {self.bus._ack_wait_seconds:g} s, at try {copy.tries}"
                self.bus._give_up(copy, NO_ANSWER, detail)
        for future, (_, deadline) in self.waiters.items():
            if deadline > now:
                next_at = min(next_at, deadline)
            elif not future.done():
                future.set_result(None)
        return next_at


class _Member:
    """A subscription."""

    __slots__ = ("_group", "_is_closed", "is_paused")

    def __init__(self, group: _Group) -> None:
        self._group = group
        self._is_closed = False
        self.is_paused = False

    @property
    def consumer(self) -> str:
        return self._group.name

    async def fetch(self, limit: int, wait_seconds: float) -> list[Delivery]:
        if limit < 1:
            raise ValueError(f"cannot fetch {limit} messages")
        group = self._group
        bus = group.bus
        now = bus._clock.monotonic()
        deadline = now + wait_seconds
        try:
            while not (self._is_closed or bus._is_closing):
                if group.ready and not self.is_paused and (batch := self._take(limit, now)):
                    return batch
                if now >= deadline:
                    break
                await self._wait(deadline)
                now = bus._clock.monotonic()
            return []
        finally:
            # We may have been woken for something that we did not take: cancelled, paused, or our hands were full.
            if group.waiters:
                group.wake()

    def _take(self, limit: int, now: float) -> list[Delivery]:
        group = self._group
        bus, ready, in_hand = group.bus, group.ready, group.in_hand
        overdue_at = now + bus._ack_wait_seconds
        batch: list[Delivery] = []
        while ready and len(batch) < limit:
            copy = ready.popleft()
            if copy.state != _READY:
                continue
            copy.tries += 1
            if copy.tries == 1:
                copy.first_at = now
            delivery = _Delivery(copy.message, copy.tries, copy, self, overdue_at)
            copy.state = _HELD
            copy.holder = delivery
            in_hand[delivery] = None
            batch.append(delivery)
        if overdue_at < bus._alarm_at:
            bus._wake_at(overdue_at)
        return batch

    async def _wait(self, deadline: float) -> None:
        group = self._group
        group.wake()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        group.waiters[future] = (self, deadline)
        group.bus._wake_at(deadline)
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
            if delivery._copy.tries < group.bus._max_tries:
                group.put_back(delivery._copy, first=True)


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
        self._clock = clock
        self._dead_letters = dead_letters
        self._ack_wait_seconds = ack_wait_seconds
        self._max_tries = max_tries
        self._dedup_seconds = dedup_seconds
        self._dedup_max = dedup_max

        self._groups: dict[str, _Group] = {}
        self._hearers: dict[str, tuple[_Group, ...]] = {}
        self._posts: dict[str, _Post] = {}
        self._window: deque[_Post] = deque()
        self._published_at = 0.0

        self._ordinals = itertools.count()
        self._delayed: list[tuple[float, int, _Copy]] = []
        self._letters: list[tuple[float, int, _Letter]] = []
        self._laying: asyncio.Task[None] | None = None
        self._alarm: asyncio.Task[None] | None = None
        self._alarm_at = inf

        self._is_closing = False
        self._is_closed = False
        self._closers: dict[asyncio.Future[None], float] = {}

    @property
    def is_connected(self) -> bool:
        return not self._is_closing

    def publish(self, message: Message) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._is_closing:
            _refuse(future)
            return future
        self._published_at = now = self._clock.monotonic()
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
        self._posts[message.id] = post = _Post(message.id, now, len(groups), future)
        for group in groups:
            group.ready.append(_Copy(message, post, group))
            if group.waiters:
                group.wake()
        if not groups:
            post.unsettled = 1
            self._settle(post)
        return future

    async def subscribe(self, consumer: str, subjects: Sequence[str]) -> Subscription:
        if self._is_closing:
            raise BusClosed("the bus is closed")
        group = self._groups.get(consumer)
        if group is None:
            self._groups[consumer] = group = _Group(self, consumer)
        group.subjects = tuple(subjects)
        hearers: dict[str, dict[_Group, None]] = {}
        for each in self._groups.values():
            for subject in each.subjects:
                hearers.setdefault(subject, {})[each] = None
        self._hearers = {subject: tuple(groups) for subject, groups in hearers.items()}
        return _Member(group)

    async def close(self, grace_seconds: float = 5.0) -> None:
        if not self._is_closing:
            self._is_closing = True
            for group in self._groups.values():
                group.wake_all()
        if not self._is_idle():
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._closers[idle] = deadline = self._clock.monotonic() + grace_seconds
            self._wake_at(deadline)
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

    def _look_whether_idle(self) -> None:
        if self._closers and self._is_idle():
            self._release_closers()

    def _release_closers(self) -> None:
        for idle in self._closers:
            if not idle.done():
                idle.set_result(None)

    # What becomes of messages

    def _settle(self, post: _Post) -> None:
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

    def _delay(self, copy: _Copy, delay_seconds: float) -> None:
        due_at = self._clock.monotonic() + delay_seconds
        heapq.heappush(self._delayed, (due_at, next(self._ordinals), copy))
        self._wake_at(due_at)

    def _give_up(self, copy: _Copy, error: str, detail: str) -> None:
        """Make *copy* a dead letter. Its group has settled it only once the letter is laid down."""
        copy.state = _OVER
        last_seen = self._clock.now()
        now = self._clock.monotonic()
        letter = DeadLetter(
            id=caused_id(copy.message.id, copy.group.name),
            consumer=copy.group.name,
            message=copy.message,
            error=error,
            detail=detail,
            attempts=copy.tries,
            first_seen=last_seen - timedelta(seconds=now - copy.first_at),
            last_seen=last_seen,
        )
        if not self._is_closed:
            heapq.heappush(self._letters, (now, next(self._ordinals), _Letter(letter, copy)))
            if self._laying is None:
                self._laying = asyncio.get_running_loop().create_task(self._lay_down(), name="dead letters")
        copy.group.let_go(copy)

    async def _lay_down(self) -> None:
        """Lay down every dead letter that is due, one after the other; those that fail are due again later."""
        while self._letters and self._letters[0][0] <= self._clock.monotonic():
            _, _, waiting = heapq.heappop(self._letters)
            try:
                await self._dead_letters.add(waiting.letter)
            except (Exception, asyncio.CancelledError) as error:  # whatever it was, the letter is not kept and must not be lost
                if _is_cancelled(error):
                    raise
                waiting.failures += 1
                again_seconds = min(2.0 ** (waiting.failures - 1), _LAY_DOWN_AGAIN_MAX_SECONDS)
                heapq.heappush(self._letters, (self._clock.monotonic() + again_seconds, next(self._ordinals), waiting))
                _log.warning("dead letter %s is not laid down, next try in %g s: %r", waiting.letter.id, again_seconds, error)
            else:
                self._settle(waiting.copy.post)
        self._laying = None
        if self._letters:
            self._wake_at(self._letters[0][0])
        self._look_whether_idle()

    # The alarm

    def _wake_at(self, at: float) -> None:
        """See to it that `_tick` runs at *at*, or before."""
        if at < self._alarm_at and not self._is_closed:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm_at = at
            self._alarm = asyncio.get_running_loop().create_task(self._ring(at), name="alarm")

    async def _ring(self, at: float) -> None:
        while (left_seconds := at - self._clock.monotonic()) > 0:
            await self._clock.sleep(left_seconds)
        self._alarm, self._alarm_at = None, inf
        self._tick(self._clock.monotonic())

    def _tick(self, now: float) -> None:
        """Do whatever is due, and set the alarm for what is due next."""
        delayed = self._delayed
        while delayed and delayed[0][0] <= now:
            _, _, copy = heapq.heappop(delayed)
            if copy.state == _DELAYED:
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
        self._wake_at(next_at)


def _refuse(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_exception(BusClosed("the bus is closed"))
        future.exception()  # seen: a publisher that has left must not make the loop complain


def _is_cancelled(error: BaseException) -> bool:
    """Tell whether *error* ends this very task, rather than something that the task waited for."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
