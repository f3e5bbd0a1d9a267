"""Dead letters on their way: each is laid down first, and only then is its message taken from the consumer."""

from __future__ import annotations

__all__ = ["DeadLetterQueue"]

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from attrs import define

from bus.ids import derived_id
from bus.jetstream.delivery import Delivery
from bus.port import Clock, DeadLetter, DeadLetters

_AGAIN_SECONDS_MAX = 30.0

_log = logging.getLogger(__name__)


@define(eq=False)
class _Entry:
    dead_letter: DeadLetter
    delivery: Delivery
    failures: int = 0


class DeadLetterQueue:
    """
    Lay down dead letters one after the other; those that fail are tried again with growing delays.

    Meanwhile their messages are kept ours. Should the process die, they come again, or the patrol finds them; the
    letter has the same id then.
    """

    def __init__(self, clock: Clock, dead_letters: DeadLetters, *, ack_wait_seconds: float, on_idle: Callable[[], None]) -> None:
        self._clock = clock
        self._dead_letters = dead_letters
        self._ack_wait_seconds = ack_wait_seconds
        self._on_idle = on_idle
        self._ordinals = itertools.count()
        self._waiting: list[tuple[float, int, _Entry]] = []
        self._laying: asyncio.Task[None] | None = None
        self._current: _Entry | None = None
        self._is_closed = False

    @property
    def is_empty(self) -> bool:
        return self._laying is None and not self._waiting

    def put(self, delivery: Delivery, error: str, detail: str) -> None:
        """Take *delivery* as given up."""
        if self._is_closed:
            return
        message, consumer = delivery.message, delivery.durable.plan.name
        dead_letter = DeadLetter(
            id=derived_id(message.id, consumer),
            consumer=consumer,
            message=message,
            error=error,
            detail=detail,
            attempts=delivery.tries,
            first_seen=datetime.fromtimestamp(delivery.said_at_ns / 1e9, UTC),
            last_seen=self._clock.now(),
        )
        heapq.heappush(self._waiting, (self._clock.monotonic(), next(self._ordinals), _Entry(dead_letter, delivery)))
        self._start()

    def tick(self, now: float) -> None:
        """Keep the messages ours, and try again what is due."""
        stale = now - self._ack_wait_seconds / 3
        letters = [dead_letter for _, _, dead_letter in self._waiting]
        for each in [*letters, self._current] if self._current else letters:
            if each.delivery.touched_at <= stale:
                each.delivery.keep()
        if self._waiting and self._waiting[0][0] <= now:
            self._start()

    async def close(self) -> None:
        """Stop. What is not laid down by now stays with its consumer."""
        self._is_closed = True
        self._waiting.clear()
        if self._laying is not None:
            self._laying.cancel()
            # A store that ignores its cancellation must not hold us.
            await asyncio.wait((self._laying,), timeout=0.1)

    def _start(self) -> None:
        if self._laying is None and not self._is_closed:
            self._laying = asyncio.get_running_loop().create_task(self._lay_down(), name="dead letters")

    async def _lay_down(self) -> None:
        try:
            while self._waiting and self._waiting[0][0] <= self._clock.monotonic():
                _, _, self._current = heapq.heappop(self._waiting)
                await self._lay_one(self._current)
        finally:
            self._laying = self._current = None
            self._on_idle()

    async def _lay_one(self, waiting: _Entry) -> None:
        delivery = waiting.delivery
        if delivery.is_void:
            return
        try:
            await self._dead_letters.add(waiting.dead_letter)
        except (Exception, asyncio.CancelledError) as error:  # whatever it was, the letter is not kept and must not be lost
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            waiting.failures += 1
            again_seconds = min(2.0 ** (waiting.failures - 1), _AGAIN_SECONDS_MAX)
            heapq.heappush(self._waiting, (self._clock.monotonic() + again_seconds, next(self._ordinals), waiting))
            _log.warning("dead letter %s is not laid down, next try in %g s: %r", waiting.dead_letter.id, again_seconds, error)
        else:
            delivery.bury()
            delivery.durable.let_go(delivery)
