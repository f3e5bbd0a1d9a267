"""
Watch for readers that hold an old snapshot: a forgotten shell, a backup tool, a replication slot.

While one does, SQLite cannot write its ``-wal`` back, and PostgreSQL cannot remove old rows: files grow, and each look
into the outbox takes longer.
"""

from __future__ import annotations

__all__ = ["SAMPLE_SECONDS", "ReaderWatch", "ReaderWatches"]

import os
from collections.abc import Callable, Mapping

from sqlalchemy import Connection

from app.storage.errors import StorageUnavailable
from app.storage.sql.database import Database
from app.telemetry.metrics import Metrics
from bus.port import Clock

SAMPLE_SECONDS = 10.0

WAL_BYTES_USUAL = 16 * 2**20
"""SQLite writes its ``-wal`` back at 4 MB and overwrites it from its beginning; a much larger one shows that a reader prevents that."""


class ReaderWatch:
    """The size of the ``-wal`` of *database* and the age of its oldest snapshot, at the time of the last `sample`."""

    def __init__(self, database: Database, monotonic: Callable[[], float]) -> None:
        self._database = database
        self._monotonic = monotonic
        self._usual_at = monotonic()
        self.oldest_snapshot_seconds = 0.0

    def wal_bytes(self) -> float:
        """Return the size of SQLite's ``-wal`` now; 0 for another database."""
        path = self._database.dialect.wal_path
        try:
            return 0.0 if path is None else float(os.stat(path).st_size)
        except OSError:
            return 0.0

    def disk_free_ratio(self) -> float | None:
        """Return the free share of the disk with SQLite's file, as the process may use it; None for another database."""
        path = self._database.dialect.wal_path
        if path is None:
            return None
        disk = os.statvfs(os.path.dirname(path) or ".")
        return disk.f_bavail / disk.f_blocks if disk.f_blocks else None

    async def sample(self) -> None:
        """Look once; a database that is out of reach keeps its last value."""
        sql = self._database.dialect.oldest_snapshot_sql
        if sql is None:
            now = self._monotonic()
            if self.wal_bytes() <= WAL_BYTES_USUAL:
                self._usual_at = now
            self.oldest_snapshot_seconds = now - self._usual_at
            return

        def seconds(connection: Connection) -> float:
            return float(connection.exec_driver_sql(sql).scalar() or 0.0)

        try:
            self.oldest_snapshot_seconds = await self._database.read(seconds)
        except StorageUnavailable:
            return


class ReaderWatches:
    """A `ReaderWatch` for each of *databases*, which are by module; *metrics* shows what they find."""

    def __init__(self, databases: Mapping[str, Database], clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._watches = {id(database): ReaderWatch(database, clock.monotonic) for database in databases.values()}
        for module, database in databases.items():
            watch = self._watches[id(database)]
            metrics.database_wal_bytes.labels(module).set_function(watch.wal_bytes)
            if database.dialect.wal_path is not None:
                metrics.database_disk_free.labels(module).set_function(watch.disk_free_ratio)
            age = metrics.database_oldest_snapshot_seconds.labels(module)
            age.set_function(lambda watch=watch: watch.oldest_snapshot_seconds)  # type: ignore[misc]

    async def run(self) -> None:
        """Look regularly until cancelled."""
        while True:
            for watch in self._watches.values():
                await watch.sample()
            await self._clock.sleep(SAMPLE_SECONDS)
