"""What a module does while its database is out of reach: send askers home, keep what the bus brought, and try again."""

from __future__ import annotations

__all__ = ["StorageOutage"]

import asyncio
import random
from collections.abc import Sequence

from app.runtime.work import WorkItem
from app.runtime.work_queue import WorkQueue
from app.storage.errors import StorageUnavailable
from app.storage.sql.database import Database
from bus.port import Clock

SECONDS_MIN = 0.1
SECONDS_MAX = 2.0
"""Between two looks at whether the database answers; doubled each time, with jitter."""

KEEP_SECONDS = 1.0


class StorageOutage:
    """The time for which *database* does not answer those in *room*."""

    def __init__(self, room: WorkQueue[WorkItem], database: Database, clock: Clock, rng: random.Random) -> None:
        self.is_active = False
        """True while nobody new should be let in, only to be turned away."""
        self._queue = room
        self._database = database
        self._clock = clock
        self._rng = rng

    async def wait_out(self, batch: Sequence[WorkItem], error: StorageUnavailable) -> None:
        """
        Turn *batch* away, which met *error*, and return once the database answers.

        What the bus brought sits down again, and no message is charged a try for it.
        """
        self.is_active = True
        self._queue.requeue([item for item in batch if item.delivery is not None], lambda item: item.is_express)
        _send_home(batch, error)
        keeping = asyncio.create_task(self._extend_ack_deadlines())
        try:
            await self._wait()
        finally:
            keeping.cancel()

    async def _wait(self) -> None:
        seconds = SECONDS_MIN
        while self.is_active:
            await self._clock.sleep(seconds * self._rng.uniform(0.5, 1.0))
            seconds = min(SECONDS_MAX, seconds * 2)
            try:
                await self._database.check()
                self.is_active = False
            except StorageUnavailable as still:
                _send_home(self._queue.remove_if(lambda item: item.future is not None), still)

    async def _extend_ack_deadlines(self) -> None:
        """Keep what the bus brought ours, until cancelled; a database may take its time to say that it is away."""
        while True:
            for item in self._queue:
                for delivery in (item.delivery, *item.older_deliveries):
                    if delivery is not None:
                        await delivery.in_progress()
            await self._clock.sleep(KEEP_SECONDS)


def _send_home(items: Sequence[WorkItem], error: StorageUnavailable) -> None:
    for item in items:
        if item.future is not None and not item.future.done():
            item.future.set_exception(type(error)(error.detail, error.retry_after_seconds))
