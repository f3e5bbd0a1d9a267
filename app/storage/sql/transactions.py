"""
Transactions, in steps: begin, work, commit, and what is done when one of them fails.

How a transaction goes is written once, as a generator. It does the work itself and yields whatever may wait for a disk or
for somebody else's lock, for its driver to do: in the same thread (`run`), or in another one while the event loop goes
on (`run_aside`).
"""

from __future__ import annotations

__all__ = ["Answer", "Piece", "Steps", "Transactor", "Work", "run", "run_aside"]

import asyncio
import random
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from attrs import define
from loguru import logger
from sqlalchemy import Connection, Engine, RootTransaction

from app.storage.errors import CommitOutcomeUnknown, StorageUnavailable
from app.storage.sql.dialect import TX_ID, Dialect, Failure, invalidate_cache

T = TypeVar("T")
Work = Callable[[Connection], T]
Steps = Generator[Callable[[], Any], Any, T]

TRIES = 6
"""How often a transaction is begun that met somebody else's, or whose connection was cut."""

TRIES_SECONDS = 5.0
"""After so long it is not begun again either: those who wait had better hear it."""

_PAUSE_SECONDS = 0.005
"""Before the second try, about; doubled each time."""


@define(eq=False)
class Piece:
    """Some *work*, and who waits for it; nobody does for what rides along."""

    work: Work[Any]
    future: asyncio.Future[Any] | None
    place: str = ""


Answer = tuple[Piece, Any, BaseException | None]


class Transactor:
    """One connection, and the transactions on it, one after the other."""

    def __init__(self, dialect: Dialect, engine: Engine) -> None:
        self.is_healthy = True
        """False after a transaction that the database refused, until one has written something."""
        self._dialect = dialect
        self._engine = engine
        self._connection: Connection | None = None

    def together(self, pieces: Sequence[Piece]) -> Steps[list[Answer]]:
        """Do all *pieces* in one transaction; if one of them fails, each in its own."""
        try:
            answers = yield from self._transact(pieces)
        except Exception as error:
            if len(pieces) == 1 or isinstance(error, StorageUnavailable):
                return [(piece, None, error) for piece in pieces]
            found = []
            for piece in pieces:
                found += yield from self.together([piece])
            return found
        return [(piece, answer, None) for piece, answer in zip(pieces, answers, strict=True)]

    def hang_up(self) -> None:
        """Close the connection, if there is one; the next transaction opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except Exception as error:
                logger.warning("the database connection did not close", error=str(getattr(error, "orig", error)))

    def _transact(self, pieces: Sequence[Piece]) -> Steps[list[Any]]:
        """Do *pieces* in one transaction, again from the beginning if it met somebody else's or was cut off."""
        until = time.monotonic() + TRIES_SECONDS
        for tries in range(1, TRIES + 1):
            if tries > 1:
                yield partial(time.sleep, _PAUSE_SECONDS * 2.0 ** (tries - 2) * random.uniform(0.5, 1.5))
            try:
                answers = yield from self._attempt(pieces)
            except CommitOutcomeUnknown as error:
                self._away(error)
                raise
            except Exception as error:
                is_cut = self._connection is not None and self._dialect.is_disconnected(self._connection)
                trouble = Failure.RETRY if is_cut else self._dialect.classify(error)
                if is_cut:
                    self.hang_up()
                if trouble is Failure.RETRY and tries < TRIES and time.monotonic() < until:
                    logger.debug("a transaction is done again", tries=tries, error=str(getattr(error, "orig", error)))
                    continue
                if trouble is None or self._dialect.is_conflict(error):
                    if self._connection is not None and self._connection.in_transaction():
                        self.hang_up()  # it did not even begin
                    raise
                self._away(error)
                raise StorageUnavailable("The database is out of reach.") from error
            break
        if not self.is_healthy and self._connection is not None and self._dialect.has_written(self._connection):
            self.is_healthy = True
            logger.info("the database is back")
        return answers

    def _attempt(self, pieces: Sequence[Piece]) -> Steps[list[Any]]:
        connection: Connection | None = self._connection
        if connection is None:
            connection = self._connection = yield self._engine.connect
        assert connection is not None
        transaction = self._dialect.begin_at_once(connection) or (yield connection.begin)
        mark = connection.info.get(TX_ID)
        try:
            answers = [piece.work(connection) for piece in pieces]
        except Exception:
            yield partial(_undo, transaction)
            raise
        try:
            yield transaction.commit
        except Exception as error:
            yield partial(_undo, transaction)
            if not self._dialect.is_disconnected(connection):
                raise
            was_committed = mark is None or (yield partial(self._dialect.was_committed, self._engine, mark))
            if was_committed is None:
                raise CommitOutcomeUnknown("The database went out of reach while it committed.") from error
            if not was_committed:
                raise
            self.hang_up()
        return answers

    def _away(self, error: Exception) -> None:
        if self.is_healthy:
            logger.error("the database is out of reach", error=str(getattr(error, "orig", error)))
        self.is_healthy = False
        self.hang_up()


def run(steps: Steps[T]) -> T:
    """Take *steps* one after the other, here; return what they come to."""
    try:
        step = next(steps)
        while True:
            try:
                found = step()
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(found)
    except StopIteration as end:
        result: T = end.value
        return result


async def run_aside(steps: Steps[T], executor: Executor) -> T:
    """Do as `run`, but take each of the steps in *executor*; only what lies between them is done on the loop."""
    loop = asyncio.get_running_loop()
    try:
        step = next(steps)
        while True:
            try:
                found = await loop.run_in_executor(executor, step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(found)
    except StopIteration as end:
        result: T = end.value
        return result


def _undo(transaction: RootTransaction) -> None:
    with suppress(Exception):
        invalidate_cache(transaction.connection)
    # Why it failed is on its way already, and on a connection that is cut there is nothing to undo.
    with suppress(Exception):
        transaction.rollback()
