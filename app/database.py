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

__all__ = ["LAST", "Database", "Unusable", "Work", "epoch"]

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from attrs import define
from loguru import logger
from sqlalchemy import Connection, Engine, RootTransaction

from app.dialect import MARK, Dialect, Trouble, Unusable, dialect_of
from app.door import Unavailable, Unsettled

T = TypeVar("T")
Work = Callable[[Connection], T]

LAST = "~~"
"""The place of who wants to see what all the others in his transaction do, and what rides along."""

WORKS_MAX = 512
"""Pieces of work that share a transaction; bounds how long one lasts."""

TRIES = 6
"""How often a transaction is begun that met somebody else's, or whose connection was cut."""

TRIES_SECONDS = 5.0
"""After so long it is not begun again either: those who wait had better hear it."""

_RIDER = "~"
_EPOCH = "epoch"
_PAUSE_SECONDS = 0.005
"""Before the second try, about; doubled each time."""


@define(eq=False)
class _Piece:
    work: Work[Any]
    future: asyncio.Future[Any] | None
    place: str = ""


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
            Unusable: There is no driver for it, or nobody can read the address.
        """
        self.dialect = dialect_of(url)
        self.engine = self.dialect.engine(url)
        self._writer = _Thread(self.dialect, self.engine, "database-writer")
        self._reader = _Thread(self.dialect, self.engine.execution_options(reading=True), "database-reader")

    @property
    def is_healthy(self) -> bool:
        """False after a transaction that the database refused, until one succeeds."""
        return self._writer.is_healthy and self._reader.is_healthy

    async def write(self, work: Work[T], place: str = "") -> T:
        """
        Do *work* in a transaction; return its result once that is committed to disk.

        Those that share a transaction are done in the order of their *place*, then comes what rides along, then what
        asked to be `LAST`. Where several processes work on one database, all take the rows of one module before those of
        the next, and nobody waits in a circle.

        Raises:
            Unsettled: The database went away while it committed; whether anything of *work* was kept is not known.
            Unavailable: The database is out of reach; nothing of *work* was kept.
            Exception: Whatever *work* raised; nothing of it was kept.
        """
        return await self._writer.ask(work, place)

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

    def __init__(self, dialect: Dialect, engine: Engine, name: str) -> None:
        self.is_healthy = True
        self._dialect = dialect
        self._engine = engine
        self._name = name
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

    async def ask(self, work: Work[T], place: str = "") -> T:
        if self._is_closed:
            raise Unavailable("The database is closed.")
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        assert self._loop is not None
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append(_Piece(work, future, place))
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
                # Taken after the pieces: whoever asks to be last sees what was told to ride before he asked.
                pieces += [_Piece(self._riders.popleft(), None, _RIDER) for _ in range(len(self._riders))]
                pieces.sort(key=_place)
                answers = self._together(pieces)
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
        """Do *pieces* in one transaction, again from the beginning if it met somebody else's or was cut off."""
        until = time.monotonic() + TRIES_SECONDS
        for tries in range(1, TRIES + 1):
            if tries > 1:
                time.sleep(_PAUSE_SECONDS * 2.0 ** (tries - 2) * random.uniform(0.5, 1.5))
            try:
                answers = self._attempt(pieces)
            except Unsettled as error:
                self._away(error)
                raise
            except Exception as error:
                is_cut = self._connection is not None and self._dialect.is_cut(self._connection)
                trouble = Trouble.AGAIN if is_cut else self._dialect.trouble(error)
                if is_cut:
                    self._hang_up()
                if trouble is Trouble.AGAIN and tries < TRIES and time.monotonic() < until:
                    logger.debug("a transaction is done again", tries=tries, error=str(getattr(error, "orig", error)))
                    continue
                if trouble is None or self._dialect.is_conflict(error):
                    if self._connection is not None and self._connection.in_transaction():
                        self._hang_up()  # it did not even begin
                    raise
                self._away(error)
                raise Unavailable("The database is out of reach.") from error
            break
        if not self.is_healthy:
            self.is_healthy = True
            logger.info("the database is back")
        return answers

    def _attempt(self, pieces: list[_Piece]) -> list[Any]:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._engine.connect()
        transaction = connection.begin()
        mark = connection.info.get(MARK)
        try:
            answers = [piece.work(connection) for piece in pieces]
        except Exception:
            self._undo(transaction)
            raise
        try:
            transaction.commit()
        except Exception as error:
            self._undo(transaction)
            if not self._dialect.is_cut(connection):
                raise
            was_committed = mark is None or self._dialect.was_committed(self._engine, mark)
            if was_committed is None:
                raise Unsettled("The database went out of reach while it committed.") from error
            if not was_committed:
                raise
            self._hang_up()
        return answers

    @staticmethod
    def _undo(transaction: RootTransaction) -> None:
        with suppress(Exception):
            transaction.connection.info.pop(_EPOCH, None)
        # Why it failed is on its way already, and on a connection that is cut there is nothing to undo.
        with suppress(Exception):
            transaction.rollback()

    def _away(self, error: Exception) -> None:
        if self.is_healthy:
            logger.error("the database is out of reach", error=str(getattr(error, "orig", error)))
        self.is_healthy = False
        self._hang_up()

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except Exception as error:
                logger.warning("the database connection did not close", error=str(getattr(error, "orig", error)))

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


def epoch(connection: Connection) -> object:
    """Return an object that stays the same for as long as nothing that was done on *connection* is undone."""
    return connection.info.setdefault(_EPOCH, object())


def _place(piece: _Piece) -> str:
    return piece.place


def _nothing(connection: Connection) -> None:
    """Do nothing: whatever rides along is the point."""
