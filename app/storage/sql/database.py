"""
One open database with two connections: one writes, one reads.

Callers submit work, a function of a connection, and await its result. `app.storage.sql.executors` says how work shares
transactions and where it runs.
"""

from __future__ import annotations

__all__ = ["RUN_LAST", "Database", "Work"]

from typing import Any, TypeVar

from sqlalchemy import Connection

from app.storage.sql.executors import RUN_LAST, LoopExecutor, ThreadExecutor
from app.storage.sql.open_dialect import open_dialect
from app.storage.sql.transactions import Transactor, Work

T = TypeVar("T")


class Database:
    """
    An open database.

    Call `write` and `read` on one event loop only. Work may run in a thread, and runs again if the transaction that it
    shares has to be repeated. So work reads only immutable data, and changes nothing but its connection, objects that
    nothing else uses, and caches.
    """

    def __init__(self, url: str) -> None:
        """
        Prepare the engine for *url*; no connection is opened yet.

        Raises:
            DatabaseConfigError: The URL is invalid, or its driver is not installed.
        """
        self.dialect = open_dialect(url)
        self.engine = self.dialect.engine(url)
        writer = Transactor(self.dialect, self.engine)
        reader = Transactor(self.dialect, self.engine.execution_options(reading=True))
        self._writer = ThreadExecutor(writer, "database-writer") if self.dialect.is_shared else LoopExecutor(writer)
        self._reader = ThreadExecutor(reader, "database-reader")

    @property
    def is_healthy(self) -> bool:
        """False after a transaction that the database refused, until one has written something."""
        return self._writer.is_healthy and self._reader.is_healthy

    @property
    def is_refused(self) -> bool:
        """True if the database answers, and has refused work a moment ago; see `app.storage.errors.StorageRefused`."""
        return self._writer.is_refused or self._reader.is_refused

    @property
    def problem(self) -> str:
        """Why the database is out of reach, in one line for the operator; empty if that is not known."""
        return self.dialect.lost

    async def write(self, work: Work[T], order_key: str = "") -> T:
        """
        Run *work* in a transaction; return its result once that is committed to disk.

        Work that shares a transaction runs in the order of its *order_key*, then comes deferred work, then work with
        `RUN_LAST`. Where several processes work on one database, all of them therefore lock the rows of the modules in
        the same order, and cannot deadlock.

        Raises:
            CommitOutcomeUnknown: The connection broke during the commit; it is unknown whether *work* was stored.
            StorageUnavailable: The database is out of reach; nothing of *work* was stored.
            StorageRefused: It answers, and refuses the work for a reason that is not in its data.
            Exception: Whatever *work* raised; nothing of it was stored.
        """
        return await self._writer.execute(work, order_key)

    async def check(self) -> None:
        """
        Return if the database answers; after a failure it must also prove that it can be written.

        Raises:
            StorageUnavailable: It does not.
        """
        await self.write(_nothing if self.is_healthy else self.dialect.probe)

    def defer(self, work: Work[Any]) -> None:
        """
        Run *work* in the next transaction that other work causes, or in that of the next `flush`.

        It is deferred again while the database is unavailable. Any other error is logged; the work is then dropped.
        """
        self._writer.defer(work)

    async def flush(self) -> None:
        """Run deferred work now. Raises as `write` does."""
        if self._writer.has_deferred:
            await self.write(_nothing)

    async def read(self, work: Work[T]) -> T:
        """
        Run *work* on a snapshot; it must not write.

        Raises:
            StorageUnavailable: The database is out of reach.
        """
        return await self._reader.execute(work)

    async def close(self) -> None:
        """Run the work that was submitted, then close the connections. Idempotent."""
        await self._writer.close()
        await self._reader.close()
        self.engine.dispose()


def _nothing(connection: Connection) -> None:
    """Do nothing: only the transaction itself, with the deferred work in it, is wanted."""
