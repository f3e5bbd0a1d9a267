"""What a module does while its database is out of reach: send askers home, keep what the bus brought, and try again."""

from __future__ import annotations

__all__ = ["Away"]

import asyncio
import random
from collections.abc import Sequence

from app.runtime.service import Unavailable
from app.runtime.work import Seat
from app.runtime.work_queue import WaitingRoom
from app.storage.sql.database import Database
from bus.port import Clock

SECONDS_MIN = 0.1
SECONDS_MAX = 2.0
"""Between two looks at whether the database answers; doubled each time, with jitter."""

KEEP_SECONDS = 1.0


class Away:
    """The time for which *database* does not answer those in *room*."""

    def __init__(self, room: WaitingRoom[Seat], database: Database, clock: Clock, dice: random.Random) -> None:
        self.is_now = False
        """True while nobody new should be let in, only to be turned away."""
        self._room = room
        self._database = database
        self._clock = clock
        self._dice = dice

    async def turn(self, batch: Sequence[Seat], error: Unavailable) -> None:
        """
        Turn *batch* away, which met *error*, and return once the database answers.

        What the bus brought sits down again, and no message is charged a try for it.
        """
        self.is_now = True
        self._room.sit_again([seat for seat in batch if seat.delivery is not None], lambda seat: seat.express)
        _send_home(batch, error)
        keeping = asyncio.create_task(self._keep())
        try:
            await self._wait()
        finally:
            keeping.cancel()

    async def _wait(self) -> None:
        seconds = SECONDS_MIN
        while self.is_now:
            await self._clock.sleep(seconds * self._dice.uniform(0.5, 1.0))
            seconds = min(SECONDS_MAX, seconds * 2)
            try:
                await self._database.check()
                self.is_now = False
            except Unavailable as still:
                _send_home(self._room.leave(lambda seat: seat.future is not None), still)

    async def _keep(self) -> None:
        """Keep what the bus brought ours, until cancelled; a database may take its time to say that it is away."""
        while True:
            for seat in self._room:
                for delivery in (seat.delivery, *seat.lower):
                    if delivery is not None:
                        await delivery.in_progress()
            await self._clock.sleep(KEEP_SECONDS)


def _send_home(seats: Sequence[Seat], error: Unavailable) -> None:
    for seat in seats:
        if seat.future is not None and not seat.future.done():
            seat.future.set_exception(type(error)(error.detail, error.retry_after_seconds))
