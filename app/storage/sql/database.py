"""
One database, and who talks to it: one connection writes, one reads.

Whoever wants something done hands over a piece of work and waits. All the work that is waiting when a connection gets
free goes into one transaction: alone, a piece is committed at once; under load, many share one fsync. (Group commit: the
busier the house, the cheaper each piece.)

A database on a server is written in a thread of its own, for each statement waits for the network. In a file of ours no
statement waits for anybody once its transaction has begun; it is written on the event loop, and only beginning and
committing, which wait for locks and for the disk, are done in a thread beside it. Two threads that take turns at Python
would cost a fifth of the orders: they pass the interpreter's lock to and fro at every statement, and each finds the
processor's caches full of what the other did.
"""

from __future__ import annotations

__all__ = ["RUN_LAST", "Database", "DatabaseConfigError", "Work"]

import asyncio
import threading
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import Any, TypeVar

from loguru import logger
from sqlalchemy import Connection

from app.storage.errors import DatabaseConfigError, StorageUnavailable
from app.storage.sql.open_dialect import open_dialect
from app.storage.sql.transactions import Answer, Piece, Transactor, Work, run, run_aside

T = TypeVar("T")

RUN_LAST = "~~"
"""The place of who wants to see what all the others in his transaction do, and what rides along."""

WORKS_MAX = 512
"""Pieces of work that share a transaction; bounds how long one lasts."""

_RIDER = "~"
_place = attrgetter("place")


class Database:
    """
    A database that is open.

    `write` and `read` may be called on one event loop only. A piece of work may run in a thread, and runs again if the
    transaction that it shares has to be repeated. So it reads what does not change, and changes nothing but its connection,
    what belongs to it alone, and caches.
    """

    def __init__(self, url: str) -> None:
        """
        Prepare the engine for *url*; nothing is opened yet.

        Raises:
            Unusable: There is no driver for it, or nobody can read the address.
        """
        self.dialect = open_dialect(url)
        self.engine = self.dialect.engine(url)
        writer = Transactor(self.dialect, self.engine)
        reader = Transactor(self.dialect, self.engine.execution_options(reading=True))
        self._writer = _InThread(writer, "database-writer") if self.dialect.is_shared else _OnLoop(writer)
        self._reader = _InThread(reader, "database-reader")

    @property
    def is_healthy(self) -> bool:
        """False after a transaction that the database refused, until one has written something."""
        return self._writer.is_healthy and self._reader.is_healthy

    async def write(self, work: Work[T], place: str = "") -> T:
        """
        Do *work* in a transaction; return its result once that is committed to disk.

        Those that share a transaction are done in the order of their *place*, then comes what rides along, then what
        asked to be `RUN_LAST`. Where several processes work on one database, all take the rows of one module before those of
        the next, and nobody waits in a circle.

        Raises:
            Unsettled: The database went away while it committed; whether anything of *work* was kept is not known.
            Unavailable: The database is out of reach; nothing of *work* was kept.
            Exception: Whatever *work* raised; nothing of it was kept.
        """
        return await self._writer.ask(work, place)

    async def check(self) -> None:
        """
        Return if the database answers; after trouble it has to prove that it can be written, too.

        Raises:
            Unavailable: It does not.
        """
        await self.write(_nothing if self.is_healthy else self.dialect.probe)

    def defer(self, work: Work[Any]) -> None:
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


class _Queue(ABC):
    """The work that waits for a connection, and what rides along."""

    def __init__(self, transactor: Transactor) -> None:
        self._transactor = transactor
        self._waiting: deque[Piece] = deque()
        self._riders: deque[Work[Any]] = deque()
        self._is_idle = True
        self._is_closed = False

    @property
    def is_healthy(self) -> bool:
        return self._transactor.is_healthy

    @property
    def has_riders(self) -> bool:
        return bool(self._riders)

    def ride(self, work: Work[Any]) -> None:
        self._riders.append(work)

    async def ask(self, work: Work[T], place: str = "") -> T:
        if self._is_closed:
            raise StorageUnavailable("The database is closed.")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(Piece(work, future, place))
        if self._is_idle:
            self._is_idle = False
            self._wake()
        return await future

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._finish()

    @abstractmethod
    def _wake(self) -> None:
        """See to it that what waits is done, and that we are idle afterwards."""

    @abstractmethod
    async def _finish(self) -> None:
        """Return once what waits is done and the connection is closed."""

    def _take(self) -> list[Piece]:
        """Return what goes into the next transaction, in its order."""
        pieces = [self._waiting.popleft() for _ in range(min(len(self._waiting), WORKS_MAX))]
        # Taken after the pieces: whoever asks to be last sees what was told to ride before he asked.
        pieces += [Piece(self._riders.popleft(), None, _RIDER) for _ in range(len(self._riders))]
        pieces.sort(key=_place)
        return pieces

    def _settle(self, answers: list[Answer]) -> None:
        for piece, answer, error in answers:
            if piece.future is None:
                if isinstance(error, StorageUnavailable):
                    self._riders.append(piece.work)
                elif error is not None:
                    logger.error("what rode along with a transaction failed", error=repr(error))
            elif not piece.future.done():
                if error is None:
                    piece.future.set_result(answer)
                else:
                    piece.future.set_exception(error)


class _OnLoop(_Queue):
    """Work that is done on the event loop; a thread begins and commits."""

    def __init__(self, transactor: Transactor) -> None:
        super().__init__(transactor)
        self._aside = ThreadPoolExecutor(1, "database-committer")
        self._turns: asyncio.Task[None] | None = None

    def _wake(self) -> None:
        self._turns = asyncio.create_task(self._take_turns())

    async def _take_turns(self) -> None:
        while self._waiting:
            self._settle(await run_aside(self._transactor.together(self._take()), self._aside))
            await asyncio.sleep(0)  # whoever has his answer may ask for more, and shares the next transaction
        self._is_idle = True

    async def _finish(self) -> None:
        if self._turns is not None:
            await self._turns
        await asyncio.get_running_loop().run_in_executor(self._aside, self._transactor.hang_up)
        self._aside.shutdown()


class _InThread(_Queue):
    """Work that is done in a thread called *name*, all of it."""

    def __init__(self, transactor: Transactor, name: str) -> None:
        super().__init__(transactor)
        self._name = name
        self._called = threading.Semaphore(0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def _wake(self) -> None:
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._called.release()

    async def _finish(self) -> None:
        if self._thread is not None:
            self._called.release()
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _run(self) -> None:
        assert self._loop is not None
        while True:
            self._called.acquire()
            while self._waiting:
                answers = run(self._transactor.together(self._take()))
                self._loop.call_soon_threadsafe(self._settle, answers)
            if self._is_closed:
                break
            self._loop.call_soon_threadsafe(self._rest)
        self._transactor.hang_up()

    def _rest(self) -> None:
        """Note, on the loop, that the thread sleeps; unless something came in while it was falling asleep."""
        if self._waiting:
            self._called.release()
        else:
            self._is_idle = True


def _nothing(connection: Connection) -> None:
    """Do nothing: whatever rides along is the point."""
