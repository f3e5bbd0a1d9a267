"""
One database, and the two threads that talk to it: one writes, one reads.

Whoever wants something done hands over a piece of work and waits. All the work that is waiting when a thread gets free
goes into one transaction: alone, a piece is committed at once; under load, many share one hop to the thread and one
fsync. (Group commit: the busier the house, the cheaper each piece.)

A thread that runs one small SQL statement after the other gives up the interpreter's lock at each and has to win it back
from the event loop, which may take a whole switch interval; `app.serve` therefore sets that short, and `app.rows` puts
many rows into one statement.
"""

from __future__ import annotations

__all__ = ["Database", "Unusable", "Work"]

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from attrs import define
from loguru import logger
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from app.door import Unavailable

T = TypeVar("T")
Work = Callable[[Connection], T]

BUSY_SECONDS = 2.0
"""How long we wait for somebody else's lock before we say that the database is out of reach."""

WORKS_MAX = 512
"""Pieces of work that share a transaction; bounds how long one lasts."""

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA cache_size = -16384",
    "PRAGMA wal_autocheckpoint = 4000",
    "PRAGMA journal_size_limit = 67108864",
)


class Unusable(Exception):
    """The database cannot be opened, or is not one of ours; its message is one line for the operator."""


@define(eq=False)
class _Piece:
    work: Work[Any]
    future: asyncio.Future[Any] | None


class Database:
    """
    A database that is open.

    `write` and `read` may be called on one event loop only. A piece of work must touch nothing but its connection and
    what belongs to it alone: it runs in a thread, and runs again if the transaction that it shares has to be repeated.
    """

    def __init__(self, url: str) -> None:
        """
        Prepare the engine for *url*; nothing is opened yet.

        Raises:
            Unusable: There is no driver for it.
        """
        self.engine = _sqlite(url)
        self._writer = _Thread(self.engine, "database-writer", is_writer=True)
        self._reader = _Thread(self.engine.execution_options(reading=True), "database-reader", is_writer=False)

    @property
    def is_healthy(self) -> bool:
        """False after a transaction that the database refused, until one succeeds."""
        return self._writer.is_healthy and self._reader.is_healthy

    async def write(self, work: Work[T]) -> T:
        """
        Do *work* in a transaction; return its result once that is committed to disk.

        Raises:
            Unavailable: The database is out of reach; nothing of *work* was kept.
            Exception: Whatever *work* raised; nothing of it was kept.
        """
        return await self._writer.ask(work)

    def ride(self, work: Work[Any]) -> None:
        """Do *work* in the next transaction that somebody else asks for, or in the one of the next `flush`."""
        self._writer.ride(work)

    async def flush(self) -> None:
        """Do what rides along, now. Raises as `write` does."""
        if self._writer.has_riders:
            await self.write(_nothing)

    async def read(self, work: Work[T]) -> T:
        """
        Do *work* on a snapshot; it must not write.

        Raises:
            Unavailable: The database is out of reach.
        """
        return await self._reader.ask(work)

    async def close(self) -> None:
        """Finish what was asked for, then close. Idempotent."""
        await self._writer.close()
        await self._reader.close()
        self.engine.dispose()


class _Thread:
    """A thread with one connection, and the work that waits for it."""

    def __init__(self, engine: Engine, name: str, *, is_writer: bool) -> None:
        self.is_healthy = True
        self._engine = engine
        self._name = name
        self._is_writer = is_writer
        self._waiting: deque[_Piece] = deque()
        self._riders: deque[Work[Any]] = deque()
        self._wake = threading.Semaphore(0)
        self._is_idle = True
        self._is_closed = False
        self._connection: Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def has_riders(self) -> bool:
        return bool(self._riders)

    def ride(self, work: Work[Any]) -> None:
        self._riders.append(work)

    async def ask(self, work: Work[T]) -> T:
        if self._is_closed:
            raise Unavailable("The database is closed.")
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        assert self._loop is not None
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append(_Piece(work, future))
        if self._is_idle:
            self._is_idle = False
            self._wake.release()
        return await future

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        thread = self._thread
        if thread is not None:
            self._wake.release()
            await asyncio.get_running_loop().run_in_executor(None, thread.join)

    def _run(self) -> None:
        assert self._loop is not None
        while True:
            self._wake.acquire()
            while self._waiting:
                pieces = [self._waiting.popleft() for _ in range(min(len(self._waiting), WORKS_MAX))]
                riders = [_Piece(self._riders.popleft(), None) for _ in range(len(self._riders))]
                answers = self._together(pieces + riders)
                self._loop.call_soon_threadsafe(self._settle, answers)
            if self._is_closed:
                break
            self._loop.call_soon_threadsafe(self._rest)
        self._hang_up()

    def _rest(self) -> None:
        """Note, on the loop, that the thread sleeps; unless something came in while it was falling asleep."""
        if self._waiting:
            self._wake.release()
        else:
            self._is_idle = True

    def _together(self, pieces: list[_Piece]) -> list[tuple[_Piece, Any, BaseException | None]]:
        """Do all *pieces* in one transaction; if one of them fails, each in its own."""
        try:
            answers = self._transact(pieces)
        except Exception as error:
            if len(pieces) == 1 or isinstance(error, Unavailable):
                self._ride_again(pieces, error)
                return [(piece, None, error) for piece in pieces]
            return [answer for piece in pieces for answer in self._together([piece])]
        return [(piece, answer, None) for piece, answer in zip(pieces, answers, strict=True)]

    def _ride_again(self, pieces: list[_Piece], error: Exception) -> None:
        for piece in pieces:
            if piece.future is None and isinstance(error, Unavailable):
                self._riders.append(piece.work)

    def _transact(self, pieces: list[_Piece]) -> list[Any]:
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            with self._connection.begin():
                answers = [piece.work(self._connection) for piece in pieces]
        except (OperationalError, sqlite3.OperationalError) as error:
            if self.is_healthy:
                logger.error("the database is out of reach", error=str(getattr(error, "orig", error)))
            self.is_healthy = False
            self._hang_up()
            raise Unavailable("The database is out of reach.") from error
        except (DBAPIError, sqlite3.Error):
            self._hang_up()
            raise
        if not self.is_healthy:
            self.is_healthy = True
            logger.info("the database is back")
        return answers

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except DBAPIError as error:
                logger.warning("the database connection did not close", error=str(error.orig))

    @staticmethod
    def _settle(answers: list[tuple[_Piece, Any, BaseException | None]]) -> None:
        for piece, answer, error in answers:
            if piece.future is None:
                if error is not None and not isinstance(error, Unavailable):
                    logger.error("what rode along with a transaction failed", error=repr(error))
            elif not piece.future.done():
                if error is None:
                    piece.future.set_result(answer)
                else:
                    piece.future.set_exception(error)


def _nothing(connection: Connection) -> None:
    """Do nothing: whatever rides along is the point."""


def _sqlite(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        raise Unusable(f"{parsed.get_backend_name()} is not supported yet: DATABASE_URL must begin with sqlite:///")
    assert parsed.database is not None
    path = Path(parsed.database)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unusable(f"the database's folder cannot be made: {error.strerror}") from None
    engine = create_engine(
        parsed,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False, "cached_statements": 512},
        pool_size=4,
        # A statement of ours is compiled once and kept by us; SQLAlchemy's cache serves the few others.
        query_cache_size=200,
    )

    @event.listens_for(engine, "connect")
    def opened(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None  # BEGIN is ours to say
        for pragma in _PRAGMAS:
            connection.execute(pragma)

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A deferred transaction that turns into a writing one fails with BUSY_SNAPSHOT, which no time-out cures.
        is_reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")

    return engine
