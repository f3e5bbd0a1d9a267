"""
Run jobs in transactions on one connection: begin, work, commit, and the recovery from each failure.

A transaction is written once, as a generator. It runs the work itself and yields every call that may wait for a disk, the
network or a lock. Its driver makes these calls: in the same thread (`drive`), or in an executor while the event loop goes
on (`drive_in_executor`).
"""

from __future__ import annotations

__all__ = ["Job", "JobResult", "TransactionSteps", "Transactor", "Work", "drive", "drive_in_executor"]

import asyncio
import random
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from math import inf
from typing import Any, TypeVar

from attrs import define
from loguru import logger
from sqlalchemy import Connection, Engine, RootTransaction, exc

from app.storage.errors import CommitOutcomeUnknown, StorageRefused, StorageUnavailable
from app.storage.sql.dialect import Dialect, Failure, invalidate_cache

T = TypeVar("T")
Work = Callable[[Connection], T]
TransactionSteps = Generator[Callable[[], Any], Any, T]

ATTEMPTS_MAX = 6
"""How often a transaction is begun that conflicts with others or whose connection breaks."""

RETRY_SECONDS_MAX = 5.0
"""It is not begun again after this time, even if tries are left, so that its callers get their answer."""

REFUSAL_SECONDS = 10.0
"""How long the database counts as refusing work after it has last done so. What is refused is tried again sooner."""

REFUSALS_MAX = 16
"""How many different reasons of refusals are logged during that time."""

_BACKOFF_SECONDS = 0.005
"""Mean pause before the second attempt; doubled before each further one."""


@define(eq=False)
class Job:
    """*work*, and the *future* of its result; None for deferred work, whose result nothing awaits."""

    work: Work[Any]
    future: asyncio.Future[Any] | None
    order_key: str = ""


JobResult = tuple[Job, Any, BaseException | None]
"""A job, its result, and its error or None."""


class _Recovery(Enum):
    """What to do after a failed attempt."""

    RETRY = auto()
    """Run the whole transaction again."""
    UNAVAILABLE = auto()
    """Raise `StorageUnavailable`; the database is unhealthy."""
    REFUSED = auto()
    """Raise `StorageRefused`; the database answers."""
    RAISE = auto()
    """Raise the error itself; the work caused it."""


class Transactor:
    """Runs transactions one after the other on one connection, which it opens when it needs one."""

    def __init__(self, dialect: Dialect, engine: Engine) -> None:
        self.is_healthy = True
        """False after a transaction that the database refused, until one has written something."""
        self._dialect = dialect
        self._engine = engine
        self._connection: Connection | None = None
        self._refused_until = -inf
        self._refusals: set[str] = set()

    @property
    def is_refused(self) -> bool:
        """True if the database has refused work within the last `REFUSAL_SECONDS`."""
        return time.monotonic() < self._refused_until

    def execute_together(self, jobs: Sequence[Job]) -> TransactionSteps[list[JobResult]]:
        """Run all *jobs* in one transaction; if one of them fails, run each in a transaction of its own."""
        try:
            results = yield from self._transact(jobs)
        except Exception as error:
            is_for_all = isinstance(error, StorageUnavailable) and not isinstance(error, StorageRefused)
            if len(jobs) == 1 or is_for_all:
                return [(job, None, error) for job in jobs]
            found = []
            for job in jobs:
                found += yield from self.execute_together([job])
            return found
        return [(job, result, None) for job, result in zip(jobs, results, strict=True)]

    def disconnect(self) -> None:
        """Close the connection, if there is one; the next transaction opens another."""
        connection, self._connection = self._connection, None
        if connection is not None and self._dialect.lost:
            self._dialect.abandon(connection)
        elif connection is not None:
            try:
                connection.close()
            except Exception as error:
                logger.warning("closing the database connection failed", error=_text(error))

    def _transact(self, jobs: Sequence[Job]) -> TransactionSteps[list[Any]]:
        """Run *jobs* in one transaction; repeat all of it after a conflict or a broken connection."""
        until = time.monotonic() + RETRY_SECONDS_MAX
        for attempt in range(1, ATTEMPTS_MAX + 1):
            if attempt > 1:
                yield partial(time.sleep, _BACKOFF_SECONDS * 2.0 ** (attempt - 2) * random.uniform(0.5, 1.5))
            try:
                results = yield from self._attempt(jobs)
                break
            except CommitOutcomeUnknown as error:
                self._mark_unhealthy(error)
                raise
            except Exception as error:
                is_disconnected = self._connection is not None and self._dialect.is_disconnected(self._connection)
                if is_disconnected:
                    self.disconnect()
                may_retry = attempt < ATTEMPTS_MAX and time.monotonic() < until
                recovery = _classify(error, self._dialect, is_disconnected=is_disconnected, may_retry=may_retry)
                if recovery is _Recovery.RETRY:
                    logger.debug("retrying a transaction", attempt=attempt, error=_text(error))
                    continue
                if recovery is _Recovery.RAISE:
                    if self._connection is not None and self._connection.in_transaction():
                        self.disconnect()  # begin failed half-way, and for SQLAlchemy a transaction is open
                    raise
                if recovery is _Recovery.REFUSED:
                    self._log_refusal(error)
                    raise StorageRefused("The database refuses the work.") from error
                self._mark_unhealthy(error)
                raise StorageUnavailable("The database is out of reach.") from error
        if not self.is_healthy and self._connection is not None and self._dialect.has_written(self._connection):
            self.is_healthy = True
            logger.info("the database is available again")
        return results

    def _attempt(self, jobs: Sequence[Job]) -> TransactionSteps[list[Any]]:
        """Run *jobs* in one transaction, once. After a commit whose reply was lost, ask the server for its outcome."""
        connection: Connection | None = self._connection
        if connection is None:
            connection = self._connection = yield self._engine.connect
        assert connection is not None
        transaction = self._dialect.begin_nowait(connection) or (yield connection.begin)
        try:
            results = [job.work(connection) for job in jobs]
        except Exception:
            yield partial(_roll_back, transaction)
            raise
        try:
            yield transaction.commit
        except Exception as error:
            yield partial(_roll_back, transaction)
            if not self._dialect.is_disconnected(connection):
                raise
            tx_id = self._dialect.transaction_id(connection)
            if tx_id is None:
                raise  # it has only read, or its commit was not sent
            was_committed = yield partial(self._dialect.was_committed, self._engine, tx_id)
            if was_committed is None:
                raise CommitOutcomeUnknown("The database went out of reach while it committed.") from error
            if not was_committed:
                raise
            self.disconnect()
        else:
            self._dialect.verify_commit(connection)
        return results

    def _log_refusal(self, error: Exception) -> None:
        """Log *error*, each reason once in `REFUSAL_SECONDS`; begin the next transaction with a new connection."""
        now, text = time.monotonic(), _text(error)
        if not self.is_refused:
            self._refusals.clear()
        if text not in self._refusals and len(self._refusals) < REFUSALS_MAX:
            self._refusals.add(text)
            logger.error("the database refuses work; it waits until an operator has corrected the database", error=text)
        self._refused_until = now + REFUSAL_SECONDS
        self.disconnect()  # what the connection has prepared may be the cause

    def _mark_unhealthy(self, error: Exception) -> None:
        if self.is_healthy:
            logger.error("the database is out of reach", error=_text(error))
        self.is_healthy = False
        self.disconnect()


def drive(steps: TransactionSteps[T]) -> T:
    """Make the calls that *steps* yields, here; return the result of *steps*."""
    try:
        call = next(steps)
        while True:
            try:
                result = call()
            except Exception as error:
                call = steps.throw(error)
            else:
                call = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


async def drive_in_executor(steps: TransactionSteps[T], executor: Executor) -> T:
    """Do as `drive`, but make each call in *executor*; only the code of *steps* between two calls runs on the loop."""
    loop = asyncio.get_running_loop()
    try:
        call = next(steps)
        while True:
            try:
                result = await loop.run_in_executor(executor, call)
            except Exception as error:
                call = steps.throw(error)
            else:
                call = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


def _classify(error: Exception, dialect: Dialect, *, is_disconnected: bool, may_retry: bool) -> _Recovery:
    """
    Return what to do after *error* ended an attempt.

    A conflict that is left after the last attempt is raised: then the row will always exist, and the work is the cause.
    """
    failure = Failure.RETRY if is_disconnected else _classify_sqlalchemy(error) or dialect.classify(error)
    if failure is Failure.RETRY and may_retry:
        return _Recovery.RETRY
    if failure is None or dialect.is_conflict(error):
        return _Recovery.RAISE
    return _Recovery.REFUSED if failure is Failure.REFUSED else _Recovery.UNAVAILABLE


def _classify_sqlalchemy(error: Exception) -> Failure | None:
    """Return `UNAVAILABLE` for what SQLAlchemy reports about a connection, without an error of the driver; otherwise None."""
    connection_errors = (exc.DisconnectionError, exc.TimeoutError, exc.ResourceClosedError, exc.PendingRollbackError)
    return Failure.UNAVAILABLE if isinstance(error, connection_errors) else None


def _roll_back(transaction: RootTransaction) -> None:
    with suppress(Exception):
        invalidate_cache(transaction.connection)
    # The original error is being raised already, and a broken connection has nothing left to roll back.
    with suppress(Exception):
        transaction.rollback()


def _text(error: Exception) -> str:
    """Return the driver's own text if SQLAlchemy has wrapped its error."""
    return str(getattr(error, "orig", error))
