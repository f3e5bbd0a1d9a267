"""
The heartbeat of a module: when it was last running, kept in its database, so that a clock that jumps is noticed.

A timer is a row with a due time on the wall clock. That clock may jump while no process runs: a machine starts with a
wrong clock, or a wrong one is set right. A clock that went back would delay every timer by as much; one that went ahead
would let every timer fire at once, and every open order would be timed out. A long stop of all processes looks the same,
and has the same bad effect: orders time out that nothing has worked on.

So a timer counts only the time in which the module runs. When the first process starts after a jump or a stop that is
longer than a limit, all timers are moved by it: each has as much time left as it had at the last heartbeat. Rows that
only look old must not be deleted then; so for a whole retention the time that was skipped does not count as age, in all
processes and through restarts. After that every row from before the jump is old enough by the time that has passed since.
"""

from __future__ import annotations

__all__ = ["BEAT_SECONDS", "Heartbeat"]

from datetime import datetime, timedelta

from sqlalchemy import Connection

from app.storage.sql.dialect import Dialect
from app.storage.state_rows import to_db_timestamp
from app.storage.tables import DUE_NOW

BEAT_SECONDS = 10.0
"""The interval between two heartbeats."""


class Heartbeat:
    """The heartbeat of *module*; its methods run inside the caller's transaction."""

    def __init__(self, module: str, dialect: Dialect, retention: timedelta) -> None:
        self._retention = retention
        table, outbox, sql = f"{module}_heartbeat", f"{module}_outbox", dialect.to_driver_sql
        self._select = sql(f"SELECT {dialect.timestamp_sql('alive_at')} FROM {table} WHERE id = 1{dialect.for_update}")
        self._insert = sql(f"INSERT INTO {table} (id, alive_at) VALUES (1, ?) ON CONFLICT (id) DO NOTHING")
        # Replicas that beat at the same moment do not wait for each other.
        self._update = sql(
            f"UPDATE {table} SET alive_at = ? WHERE id IN (SELECT id FROM {table} WHERE id = 1{dialect.skip_locked})"
        )
        self._select_skips = sql(f"SELECT id, {dialect.timestamp_sql('alive_at')} FROM {table} WHERE id > 1 ORDER BY id")
        self._set_skip = sql(
            f"INSERT INTO {table} (id, alive_at) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET alive_at = excluded.alive_at"
        )
        later = dialect.later_sql("due_at")
        self._move_timers = sql(f"UPDATE {outbox} SET due_at = {later} WHERE sent_at IS NULL AND due_at > ?")

    def beat(self, connection: Connection, now: datetime) -> None:
        """Note that the module is running at *now*."""
        connection.exec_driver_sql(self._update, (to_db_timestamp(now),))

    def last_beat(self, connection: Connection) -> datetime | None:
        """Return the time of the last heartbeat, by the clock of the process that made it; None before the first."""
        found = connection.exec_driver_sql(self._select).scalar_one_or_none()
        return None if found is None else datetime.fromisoformat(found)

    def skipped(self, connection: Connection, now: datetime) -> timedelta:
        """Return how much older a row may look than it is: the time that the clock skipped during the last retention."""
        return sum((until - begin for until, begin in self._skips(connection) if now < until), timedelta(0))

    def _skips(self, connection: Connection) -> list[tuple[datetime, datetime]]:
        """Return until when each skip counts, and that time less what was skipped."""
        times = [datetime.fromisoformat(at) for _, at in connection.exec_driver_sql(self._select_skips)]
        return list(zip(times[::2], times[1::2], strict=True))

    def _add_skip(self, connection: Connection, until: datetime, by: timedelta, now: datetime) -> None:
        """Keep a skip in the place of one that no longer counts, or after all others."""
        skips = self._skips(connection)
        place = next((at for at, (end, _) in enumerate(skips) if end <= now), len(skips))
        for id, at in (2 + 2 * place, until), (3 + 2 * place, until - by):
            connection.exec_driver_sql(self._set_skip, (id, to_db_timestamp(at)))

    def resume(self, connection: Connection, now: datetime, limit: timedelta) -> tuple[timedelta, int]:
        """
        Move the timers if the last heartbeat is further from *now* than *limit*, in either direction.

        Return by how much they were moved, negative for a clock that went back, and how many; zero and zero if they were
        not. What the clock skipped does not count as age for a retention. Call it before the first timer is looked for. Of several
        processes that start at once, one moves the timers.
        """
        connection.exec_driver_sql(self._insert, (to_db_timestamp(now),))
        alive_at = datetime.fromisoformat(connection.exec_driver_sql(self._select).scalar_one())
        self.beat(connection, now)
        seconds = round((now - alive_at).total_seconds())
        if abs(seconds) <= limit.total_seconds():
            return timedelta(0), 0
        if seconds > 0:  # a clock that went back makes rows look younger
            self._add_skip(connection, now + self._retention, timedelta(seconds=seconds), now)
        moved: int = connection.exec_driver_sql(self._move_timers, (seconds, DUE_NOW)).rowcount
        return timedelta(seconds=seconds), moved
