"""
One open database: work of many callers in few transactions, on two connections, one that writes and one that reads.

Callers submit work, a function of a connection, and await its result. All jobs that wait when a connection becomes free
share one transaction (group commit): a single job is committed at once; under load many jobs share one fsync, so the
cost of a job falls as the load rises.

`ThreadExecutor` runs everything in a thread of its own: with a database server each statement waits for the network.

`LoopExecutor` runs the statements on the event loop and uses a second thread only to begin and to commit, which wait for
locks and for the disk. This suits a SQLite file: no statement waits once its transaction has begun. Running the
statements in a second thread would cost a fifth of the orders: two threads that alternate in Python exchange the
interpreter's lock at every statement, and each finds the processor's caches full of the other's data.
"""

from __future__ import annotations

__all__ = ["JOBS_MAX", "RUN_LAST", "Database", "LoopExecutor", "ThreadExecutor", "Work"]

import asyncio
import threading
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import Any, TypeVar

from loguru import logger
from sqlalchemy import Connection

from app.storage.errors import StorageUnavailable
from app.storage.sql.open_dialect import open_dialect
from app.storage.sql.transactions import Job, JobResult, Transactor, Work, drive, drive_in_executor

T = TypeVar("T")

JOBS_MAX = 512
"""Jobs that share one transaction; limits how long a transaction lasts."""

RUN_LAST = "~~"
"""The order key of work that must see the effects of all other work in its transaction, deferred work included."""

_DEFERRED = "~"
_order_key = attrgetter("order_key")


class _WorkQueue(ABC):
    """The jobs that wait for one connection, and the deferred work that joins its next transaction."""

    def __init__(self, transactor: Transactor) -> None:
        self._transactor = transactor
        self._waiting: deque[Job] = deque()
        self._deferred: deque[Work[Any]] = deque()
        self._is_idle = True
        self._is_closed = False

    @property
    def is_healthy(self) -> bool:
        """False after a transaction that the database refused, until one has written something."""
        return self._transactor.is_healthy

    @property
    def is_refused(self) -> bool:
        """True if the database has refused work a moment ago."""
        return self._transactor.is_refused

    @property
    def has_deferred(self) -> bool:
        """True if work was deferred and has not run yet."""
        return bool(self._deferred)

    def defer(self, work: Work[Any]) -> None:
        """Add *work* to the next transaction without causing one."""
        self._deferred.append(work)

    async def execute(self, work: Work[T], order_key: str = "") -> T:
        """
        Run *work* in the next transaction; return its result after the commit.

        Raises:
            StorageUnavailable: The executor is closed, or as for `Database.write`.
        """
        if self._is_closed:
            raise StorageUnavailable("The database is closed.")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(Job(work, future, order_key))
        if self._is_idle:
            self._is_idle = False
            self._wake()
        return await future

    async def close(self) -> None:
        """Run the waiting jobs, then close the connection. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            await self._finish()

    @abstractmethod
    def _wake(self) -> None:
        """Start to run the waiting jobs; set ``_is_idle`` again after the last."""

    @abstractmethod
    async def _finish(self) -> None:
        """Return once all waiting jobs have run and the connection is closed."""

    def _next_jobs(self) -> list[Job]:
        """Remove and return the jobs of the next transaction, sorted by order key."""
        jobs = [self._waiting.popleft() for _ in range(min(len(self._waiting), JOBS_MAX))]
        # Deferred work is taken after the jobs: a job with RUN_LAST sees all work that was deferred before it was added.
        jobs += [Job(self._deferred.popleft(), None, _DEFERRED) for _ in range(len(self._deferred))]
        jobs.sort(key=_order_key)
        return jobs

    def _report(self, results: list[JobResult]) -> None:
        """Pass each result to its caller; defer deferred work again if the database was unavailable."""
        for job, result, error in results:
            if job.future is None:
                if isinstance(error, StorageUnavailable):
                    self._deferred.append(job.work)
                elif error is not None:
                    logger.error("deferred work failed", error=repr(error))
            elif not job.future.done():
                if error is None:
                    job.future.set_result(result)
                else:
                    job.future.set_exception(error)


class LoopExecutor(_WorkQueue):
    """Runs jobs on the event loop; a second thread begins and commits."""

    def __init__(self, transactor: Transactor) -> None:
        super().__init__(transactor)
        self._committer = ThreadPoolExecutor(1, "database-committer")
        self._running: asyncio.Task[None] | None = None

    def _wake(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._waiting:
            steps = self._transactor.execute_together(self._next_jobs())
            self._report(await drive_in_executor(steps, self._committer))
            await asyncio.sleep(0)  # callers that have just got their result may add jobs to the next transaction
        self._is_idle = True

    async def _finish(self) -> None:
        if self._running is not None:
            await self._running
        await asyncio.get_running_loop().run_in_executor(self._committer, self._transactor.disconnect)
        self._committer.shutdown()


class ThreadExecutor(_WorkQueue):
    """Runs jobs, from begin to commit, in a thread called *name*."""

    def __init__(self, transactor: Transactor, name: str) -> None:
        super().__init__(transactor)
        self._name = name
        self._wake_ups = threading.Semaphore(0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def _wake(self) -> None:
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._wake_ups.release()

    async def _finish(self) -> None:
        if self._thread is not None:
            self._wake_ups.release()
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _run(self) -> None:
        assert self._loop is not None
        while True:
            self._wake_ups.acquire()
            while self._waiting:
                results = drive(self._transactor.execute_together(self._next_jobs()))
                self._loop.call_soon_threadsafe(self._report, results)
            if self._is_closed:
                break
            self._loop.call_soon_threadsafe(self._set_idle)
        self._transactor.disconnect()

    def _set_idle(self) -> None:
        """Note on the loop that the thread waits for jobs; release it if a job was added in the meantime."""
        if self._waiting:
            self._wake_ups.release()
        else:
            self._is_idle = True


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
