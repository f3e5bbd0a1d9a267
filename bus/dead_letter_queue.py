"""Dead letters that wait to be stored: each is stored first, and only then is its message settled."""

from __future__ import annotations

__all__ = ["DeadLetterQueue"]

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable
from math import inf

from attrs import define

from bus.port import Clock, DeadLetter, DeadLetters

_RETRY_SECONDS_MAX = 30.0

_log = logging.getLogger(__name__)


def _needs_no_extension() -> bool:
    """Stand for a message that has no ack deadline while its dead letter waits."""
    return True


@define(eq=False)
class _Entry:
    dead_letter: DeadLetter
    on_stored: Callable[[], None]
    extend: Callable[[], bool]
    failures: int = 0


class DeadLetterQueue:
    """
    Store dead letters one after the other; one that fails is retried after 1, 2, 4, ... seconds, 30 at most.

    A failing dead letter delays no other. The queue is kept in memory: if the process ends, the bus redelivers the
    messages or finds them by other means, and the dead letter has the same id then.

    *on_idle* is called whenever nothing is due any more; `next_at` and `is_empty` are updated before.
    """

    def __init__(self, clock: Clock, dead_letters: DeadLetters, *, on_idle: Callable[[], None]) -> None:
        self._clock = clock
        self._dead_letters = dead_letters
        self._on_idle = on_idle
        self._ordinals = itertools.count()
        self._waiting: list[tuple[float, int, _Entry]] = []
        self._storing: asyncio.Task[None] | None = None
        self._current: _Entry | None = None
        self._is_closed = False

    @property
    def is_empty(self) -> bool:
        """True when no dead letter waits or is being stored."""
        return self._storing is None and not self._waiting

    @property
    def next_at(self) -> float:
        """When `tick` is needed next, on the monotonic clock; infinity while a dead letter is being stored or none waits."""
        return self._waiting[0][0] if self._waiting and self._storing is None else inf

    def put(
        self, dead_letter: DeadLetter, on_stored: Callable[[], None], extend: Callable[[], bool] = _needs_no_extension
    ) -> None:
        """
        Store *dead_letter* as soon as possible, then call *on_stored*; do nothing once closed.

        *extend* renews the ack deadline of the message where that is due. It is called on every `tick` until the dead
        letter is stored, and returns False when the message has been settled by an earlier delivery: the dead letter
        is dropped then.
        """
        if not self._is_closed:
            self._push(self._clock.monotonic(), _Entry(dead_letter, on_stored, extend))
            self._start()

    def tick(self, now: float) -> None:
        """Extend the ack deadlines, and retry what is due."""
        for _, _, entry in self._waiting:
            entry.extend()
        if self._current is not None:
            self._current.extend()
        if self._waiting and self._waiting[0][0] <= now:
            self._start()

    def close(self) -> asyncio.Task[None] | None:
        """
        Drop what is not stored yet; its messages stay unsettled. Idempotent.

        Returns:
            The task that is storing a dead letter, now cancelled: the caller waits for it as long as it sees fit.
        """
        self._is_closed = True
        self._waiting.clear()
        if self._storing is None or self._storing is asyncio.current_task():
            return None
        self._storing.cancel()
        return self._storing

    def _push(self, at: float, entry: _Entry) -> None:
        heapq.heappush(self._waiting, (at, next(self._ordinals), entry))

    def _start(self) -> None:
        if self._storing is None:
            self._storing = asyncio.get_running_loop().create_task(self._store_due(), name="dead letters")

    async def _store_due(self) -> None:
        try:
            while self._waiting and self._waiting[0][0] <= self._clock.monotonic():
                _, _, self._current = heapq.heappop(self._waiting)
                await self._store(self._current)
        finally:
            self._storing = self._current = None
        self._on_idle()

    async def _store(self, entry: _Entry) -> None:
        if not entry.extend():
            return
        try:
            await self._dead_letters.add(entry.dead_letter)
        except (Exception, asyncio.CancelledError) as error:  # whatever it was, the dead letter must not be lost
            if _is_cancelled(error):
                raise
            entry.failures += 1
            retry_seconds = min(2.0 ** (entry.failures - 1), _RETRY_SECONDS_MAX)
            self._push(self._clock.monotonic() + retry_seconds, entry)
            _log.warning("dead letter %s is not stored, next try in %g s: %r", entry.dead_letter.id, retry_seconds, error)
        else:
            entry.on_stored()


def _is_cancelled(error: BaseException) -> bool:
    """Return whether *error* cancels the current task, rather than a task that the store has waited for."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
