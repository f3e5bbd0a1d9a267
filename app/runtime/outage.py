"""
Wait out a database outage.

Submitters get an error at once, because a client can retry; messages from the bus stay in the queue with their
acknowledgement deadlines extended, so that an outage costs no delivery attempt.
"""

from __future__ import annotations

__all__ = ["StorageOutage", "retry_until_available"]

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from app.runtime.receiving import extend_ack_deadlines
from app.runtime.work import WorkItem
from app.runtime.work_queue import WorkQueue
from app.storage.errors import StorageRefused, StorageUnavailable, TemporarilyUnavailable
from app.storage.sql.database import Database
from bus.port import Clock

T = TypeVar("T")

SECONDS_MIN = 0.1
SECONDS_MAX = 2.0
"""The interval between two checks of the database; it doubles each time, with jitter."""

EXTEND_SECONDS = 1.0


class StorageOutage:
    """The time during which *database* does not answer."""

    def __init__(
        self, consumer: str, queue: WorkQueue[WorkItem], database: Database, clock: Clock, rng: random.Random
    ) -> None:
        self.is_active = False
        """True while submitted events have to be rejected."""
        self._consumer = consumer
        self._queue = queue
        self._database = database
        self._clock = clock
        self._rng = rng
        self._refused_seconds, self._refused_at = SECONDS_MIN, 0.0

    async def wait_out(self, items: Sequence[WorkItem], error: StorageUnavailable) -> None:
        """
        Return once the database answers again. If it answers and refuses, wait before the next attempt, longer each
        time: only the work itself can find out whether it still refuses.

        Of *items*, which failed with *error*, submitted events are rejected and deliveries go back to the queue.
        """
        self.is_active = True
        self._queue.requeue([item for item in items if item.delivery is not None], lambda item: item.is_express)
        _reject(items, error)
        extending = asyncio.create_task(self._extend_ack_deadlines())
        try:
            await self._wait_for_database(isinstance(error, StorageRefused))
        finally:
            extending.cancel()

    async def _wait_for_database(self, is_refused: bool) -> None:
        seconds = SECONDS_MIN
        if is_refused:
            if self._clock.monotonic() > self._refused_at + 2 * SECONDS_MAX:
                self._refused_seconds = SECONDS_MIN
            seconds = self._refused_seconds
            self._refused_seconds = min(SECONDS_MAX, seconds * 2)
            self._refused_at = self._clock.monotonic()
        while self.is_active:
            await self._clock.sleep(seconds * self._rng.uniform(0.5, 1.0))
            seconds = min(SECONDS_MAX, seconds * 2)
            try:
                await self._database.check()
                self.is_active = False
            except StorageUnavailable as error:
                _reject(self._queue.remove_if(lambda item: item.future is not None), error)

    async def _extend_ack_deadlines(self) -> None:
        """Extend the deadlines of all queued deliveries until cancelled; a connection attempt may take long to fail."""
        while True:
            deliveries = [
                delivery
                for item in self._queue
                for delivery in (item.delivery, *item.older_deliveries)
                if delivery is not None
            ]
            await extend_ack_deadlines(deliveries, self._consumer)
            await self._clock.sleep(EXTEND_SECONDS)


def _reject(items: Sequence[WorkItem], error: StorageUnavailable) -> None:
    """Fail the futures of submitted events, each with an exception of its own."""
    for item in items:
        if item.future is not None and not item.future.done():
            item.future.set_exception(type(error)(error.detail, error.retry_after_seconds))


async def retry_until_available(clock: Clock, call: Callable[[], Awaitable[T]]) -> T:
    """Repeat *call* until the database is available; return its result. What waits for it spends no delivery attempt."""
    while True:
        try:
            return await call()
        except TemporarilyUnavailable as error:
            await clock.sleep(error.retry_after_seconds)
