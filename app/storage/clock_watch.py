"""Notice that a clock has jumped: this process's, the machine's, or that of a database server."""

from __future__ import annotations

__all__ = ["ClockWatch", "build_clock_watch"]

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial

from loguru import logger
from sqlalchemy import Connection

from app.clock import SystemClock
from app.storage.heartbeat import BEAT_SECONDS
from app.storage.module_store import ModuleStore
from app.storage.sql.database import Database
from app.telemetry.metrics import Metrics
from bus.port import Clock

SKEW_MAX = timedelta(minutes=1)
"""How far this clock may be from that of a database server, which all replicas of a module share."""

CHECK_SECONDS = 10.0

_FOLLOW_POLL_SECONDS = 0.5

FOLLOW_SECONDS = BEAT_SECONDS + 2.0
"""For how long a start that finds a jump looks for another process of the module, which makes a heartbeat within this time."""


class ClockWatch:
    """
    Compares this process's clock with the last heartbeats, the clocks of the database servers, and the machine's clock.

    A jump beyond *limit* is passed to *on_jump*, with the number of timers that were moved. It is logged once and shown by
    `problem` if it went back or moved a timer: a stop in which no order was open is of no interest.
    """

    def __init__(
        self,
        stores: Mapping[str, ModuleStore],
        clock: Clock,
        limit: timedelta,
        on_jump: Callable[[timedelta, int], None] = lambda jump, moved: None,
    ) -> None:
        self._stores = stores
        self._clock = clock
        self._limit = limit
        self._on_jump = on_jump
        self._jump, self._jump_until = "", 0.0
        self._skew = self._step = ""

    @property
    def problem(self) -> str:
        """
        What an operator has to know about the clock; empty if there is nothing.

        A jump is reported for as long as the limit lasts.
        """
        jump = self._jump if self._clock.monotonic() < self._jump_until else ""
        return "; ".join(text for text in (jump, self._skew, self._step) if text)

    async def start(self) -> None:
        """
        Adjust this clock to a database server's, or to that of the module's other processes if they run with another one;
        move the timers if the clock has jumped since the last heartbeat.

        Raises:
            StorageUnavailable: A database is out of reach.
        """
        for database in {id(store.database): store.database for store in self._stores.values()}.values():
            await self._adjust_to(database)
        for name, store in self._stores.items():
            await self._adjust_to_running(name, store)
            resume = partial(store.heartbeat.resume, now=self._clock.now(), limit=self._limit)
            by, moved = await store.database.write(resume)
            if by:
                self._on_jump(by, moved)
            if by < timedelta(0) or moved:
                self._report_jump(name, by, moved)

    async def run(self) -> None:
        """Check regularly until cancelled."""
        while True:
            await self._clock.sleep(CHECK_SECONDS)
            self.check()

    def check(self) -> None:
        """Notice that the machine's clock was set while this process runs."""
        if not isinstance(self._clock, SystemClock):
            return
        step = self._clock.step()
        if abs(step) <= self._limit:
            self._step = ""
        elif not self._step:
            self._step = f"the machine's clock was set {_described(step)}; this process keeps its own until it is started again"
            logger.warning(self._step)

    async def _adjust_to(self, database: Database) -> None:
        sql = database.dialect.now_sql()
        if sql is None or not isinstance(self._clock, SystemClock):
            return

        def server_time(connection: Connection) -> str:
            found: str = connection.exec_driver_sql(database.dialect.to_driver_sql(f"SELECT {sql}")).scalar_one()
            return found

        skew = datetime.fromisoformat(await database.write(server_time)) - self._clock.now()
        if abs(skew) > SKEW_MAX and not self._skew:
            self._clock.adjust(skew)
            self._skew = f"the database server's clock is {_described(skew)}, compared with this machine's; this process uses the server's"
            logger.error(self._skew)

    async def _adjust_to_running(self, name: str, store: ModuleStore) -> None:
        """
        Take over the time of the processes of *name* that run already, if it is further off than the limit.

        They keep their time until they end, whatever happens to the machine's clock. If this process moved the timers by the
        difference, those would all be due at once in theirs.
        """
        if not (store.database.dialect.is_shared and isinstance(self._clock, SystemClock)):
            return
        first = last = await store.database.write(store.heartbeat.last_beat)
        until = self._clock.monotonic() + FOLLOW_SECONDS
        while last is not None and last == first and abs(last - self._clock.now()) > self._limit:
            if self._clock.monotonic() >= until:
                return  # no other process is running
            await self._clock.sleep(_FOLLOW_POLL_SECONDS)
            last = await store.database.write(store.heartbeat.last_beat)
        if last is None or abs(skew := last - self._clock.now()) <= self._limit:
            return
        self._clock.adjust(skew)
        self._skew = (
            f"the clock of the processes that run is {_described(skew)}, compared with this machine's; this process uses"
            " theirs, until all of them are ended and started again"
        )
        logger.error(self._skew, module=name)

    def _report_jump(self, module: str, by: timedelta, moved: int) -> None:
        self._jump = f"the clock is {_described(by)}, compared with the last heartbeat; timers keep the time that they had left"
        self._jump_until = self._clock.monotonic() + self._limit.total_seconds()
        logger.warning(self._jump, module=module, timers_moved=moved, seconds=by.total_seconds())


def _described(by: timedelta) -> str:
    """Return ``2:00:00 ahead`` or ``2:00:00 behind``."""
    return f"{timedelta(seconds=round(abs(by).total_seconds()))} {'ahead' if by > timedelta(0) else 'behind'}"


def build_clock_watch(
    stores: Mapping[str, ModuleStore], clock: Clock, metrics: Metrics, limit_seconds: float
) -> ClockWatch:
    """Return the watch of *clock*; a jump that went back or moved a timer is shown by the metric."""

    def jumped(by: timedelta, moved: int) -> None:
        if moved or by < timedelta(0):
            metrics.clock_jump_seconds.set(by.total_seconds())

    return ClockWatch(stores, clock, timedelta(seconds=limit_seconds), jumped)
