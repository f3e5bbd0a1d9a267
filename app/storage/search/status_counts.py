"""
Count the states of one class by status, whatever their number is, in a bounded time.

A status that few states have is counted at each call. A status that many have is counted once in a while, a part at a time;
what this process has counted since is added. The table has an index on the status and the key, which both walk.
"""

from __future__ import annotations

__all__ = ["COUNTED_MAX", "StatusCounts"]

from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from attrs import frozen
from sqlalchemy import Connection

from app.storage.sql.database import Database

COUNTED_MAX = 10_000
"""States that one read counts."""

SHARE_MAX = 0.02
"""The share of its time that counting all of them may take."""

RECOUNT_SECONDS_MIN = 5.0


@frozen
class _Complete:
    """A complete count, when it was made, and what the counter of this process was at that moment."""

    count: int
    counted: float
    made_at: float
    seconds: float


class StatusCounts:
    """
    The counts of the rows of *table* by its column ``status``, whose values are *statuses*; *key* is the primary key.

    *counted* returns how many states this process has brought to a status since its start.
    """

    def __init__(
        self,
        database: Database,
        table: str,
        key: str,
        statuses: Sequence[str],
        counted: Callable[[str], float],
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._database = database
        self._statuses = tuple(statuses)
        self._counted = counted
        self._now = now
        self._complete: dict[str, _Complete] = {}
        sql = database.dialect.to_driver_sql
        few = f"(SELECT count(*) FROM (SELECT 1 FROM {table} WHERE status = ? LIMIT {COUNTED_MAX + 1}) AS s{{}})"
        self._select_few = sql("SELECT " + ", ".join(few.format(number) for number in range(len(statuses))))
        part = f"SELECT {key} FROM {table} WHERE status = ? AND {key} > ? ORDER BY {key} LIMIT {COUNTED_MAX}"
        self._select_part = sql(f"SELECT count(*), max({key}) FROM ({part}) AS part")

    async def read(self) -> Mapping[str, int]:
        """
        Return the number of states by status.

        Up to `COUNTED_MAX` it is exact. Above, it is the last complete count and what this process has added since: another
        process may have added more, and states may have left the status.

        Raises:
            StorageUnavailable: The database is out of reach.
        """
        few = await self._database.read(self._few)
        return {
            status: count if count <= COUNTED_MAX else max(COUNTED_MAX + 1, await self._many(status))
            for status, count in zip(self._statuses, few, strict=True)
        }

    async def recount(self) -> None:
        """
        Count the statuses whose last complete count is old; takes at most `SHARE_MAX` of the time.

        Raises:
            StorageUnavailable: The database is out of reach.
        """
        for status in self._statuses:
            whole = self._complete.get(status)
            if whole is not None and self._now() - whole.made_at >= max(RECOUNT_SECONDS_MIN, whole.seconds / SHARE_MAX):
                await self._count(status)

    def _few(self, connection: Connection) -> Sequence[int]:
        return tuple(connection.exec_driver_sql(self._select_few, self._statuses).one())

    async def _many(self, status: str) -> int:
        whole = self._complete.get(status) or await self._count(status)
        return whole.count + round(self._counted(status) - whole.counted)

    async def _count(self, status: str) -> _Complete:
        started, counted = self._now(), self._counted(status)
        count, after = 0, ""
        while True:
            values = (status, after)
            found, last = await self._database.read(
                lambda connection, values=values: connection.exec_driver_sql(self._select_part, values).one()  # type: ignore[misc]
            )
            count += found
            if found < COUNTED_MAX:
                break
            after = last
        whole = self._complete[status] = _Complete(count, counted, self._now(), self._now() - started)
        return whole
