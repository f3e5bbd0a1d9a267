"""
Move what is old and finished to a module's archive, a few rows at a time.

It goes through the rows in the order of their keys, again and again, and remembers where it stopped in memory only: a row
that is left out is met again by the next sweep. Several processes may do so at once; see `StateArchive.move`.
"""

from __future__ import annotations

__all__ = ["Archiver", "Sweep", "build_archivers"]

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial

from loguru import logger
from sqlalchemy import Connection

from app.storage.archive.state_archive import Swept
from app.storage.errors import StorageUnavailable
from app.storage.module_store import ModuleStore
from app.storage.sql.database import RUN_LAST
from app.telemetry.metrics import Metrics
from bus.port import Clock

Sweep = Callable[[Connection, str, datetime], Swept]
"""``sweep(connection, after, before)``: move what is finished since *before* among the next rows after the key *after*."""

START_SECONDS = 1.0
SWEEP_SECONDS = 600.0
"""How soon the first sweep begins, and how long it rests after each one."""

OUTAGE_SECONDS = 10.0
"""How long it waits for a database that is out of reach."""

PAUSE_SECONDS = 0.05
SHARE_MAX = 0.1
"""Between two moves it pauses for this long at least, and so long that it uses no larger share of the time."""


class Archiver:
    """Archives the rows of one module."""

    def __init__(
        self, store: ModuleStore, sweeps: Mapping[str, Sweep], kept: timedelta, clock: Clock, metrics: Metrics
    ) -> None:
        """*sweeps* move rows of *store*, by what they move; a finished row stays for the time *kept*."""
        self._store = store
        self._sweeps = list(sweeps.items())
        self._kept = kept
        self._clock = clock
        self._moved = {kind: metrics.archived.labels(store.module.name, kind) for kind in sweeps}
        self._position, self._after, self._count = 0, "", 0

    async def step(self) -> float:
        """Move some rows; return the seconds until the next step."""
        kind, sweep = self._sweeps[self._position]
        try:
            # Last in its transaction: it waits for no lock, and nothing in the transaction waits for one after it.
            swept, seconds = await self._store.database.write(partial(self._move, sweep), RUN_LAST)
        except StorageUnavailable:
            return OUTAGE_SECONDS
        except Exception as error:  # a row that cannot be read stops neither the process nor the other kinds
            logger.error("archiving failed", module=self._store.module.name, kind=kind, after=self._after, error=repr(error))
            swept, seconds = Swept((), None), 0.0
        self._moved[kind].inc(len(swept.keys))
        self._count += len(swept.keys)
        self._after = swept.next_after or ""
        self._position += swept.next_after is None
        if self._position == len(self._sweeps):
            self._finish_sweep()
            return SWEEP_SECONDS
        return max(PAUSE_SECONDS, seconds * (1 / SHARE_MAX - 1))

    async def run(self) -> None:
        """Archive until cancelled."""
        await self._clock.sleep(START_SECONDS)
        while True:
            await self._clock.sleep(await self.step())

    def _move(self, sweep: Sweep, connection: Connection) -> tuple[Swept, float]:
        """Run *sweep*; return its result and the time it took. What the clock has skipped does not count as age."""
        now, began_at = self._clock.now(), time.perf_counter()
        swept = sweep(connection, self._after, now - self._kept - self._store.heartbeat.skipped(connection, now))
        return swept, time.perf_counter() - began_at

    def _finish_sweep(self) -> None:
        if self._count:
            logger.info("archived", module=self._store.module.name, rows=self._count)
        self._position, self._after, self._count = 0, "", 0


def build_archivers(
    stores: Mapping[str, ModuleStore],
    more: Mapping[str, Mapping[str, Sweep]],
    kept_seconds: float | None,
    clock: Clock,
    metrics: Metrics,
) -> dict[str, Archiver]:
    """
    Return an archiver for each module; none if *kept_seconds* is None: everything is kept forever.

    It moves the module's archivable states, and then *more* of it.
    """
    if kept_seconds is None:
        return {}
    archivers = {}
    for name, store in stores.items():
        sweeps: dict[str, Sweep] = {kind: partial(store.archive_some, cls) for cls, kind in store.archive.kinds.items()}
        sweeps |= more.get(name, {})
        archivers[name] = Archiver(store, sweeps, timedelta(seconds=kept_seconds), clock, metrics)
    return archivers
