"""The database file of one simulated process: its steps are done at once, may fail, and are points for a kill."""

from __future__ import annotations

__all__ = ["DiskFault", "forget", "open_file", "put_on_disk", "with_refused_row"]

import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from app.storage.sql.database import Database, LoopExecutor
from modules.inventory.state import Product
from modules.module import evolve
from tests.databases import migrated_file
from tests.simulation.world.scope import Scope


class DiskFault(StrEnum):
    """Why a commit fails."""

    FULL = "disk full"
    LOCKED = "database locked"
    IO_ERROR = "disk error"
    REFUSED = "database damaged"


_CODES = {
    DiskFault.FULL: sqlite3.SQLITE_FULL,
    DiskFault.LOCKED: sqlite3.SQLITE_BUSY,
    DiskFault.IO_ERROR: sqlite3.SQLITE_IOERR,
    DiskFault.REFUSED: sqlite3.SQLITE_CORRUPT,
}

DrawFault = Callable[[], DiskFault | None]
"""Returns the fault of the next commit, or None."""


class _ImmediateExecutor(Executor):
    """Makes each call at once, between two points of *scope*."""

    def __init__(self, scope: Scope, kind: str, draw_fault: DrawFault) -> None:
        self._scope = scope
        self._kind = kind
        self._draw_fault = draw_fault

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(self._call(fn, *args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future

    def _call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = fn.func if isinstance(fn, partial) else fn
        if call is time.sleep:
            return None
        name = f"{self._kind} {getattr(call, '__name__', 'call').strip('_')}"
        self._scope.point(f"before {name}")
        if name == "write commit" and (fault := self._draw_fault()) is not None:
            error = sqlite3.OperationalError(fault.value)
            error.sqlite_errorcode = _CODES[fault]
            raise error
        done = fn(*args, **kwargs)
        self._scope.point(f"after {name}")
        return done


class _NoExecutor(Executor):
    """Makes each call at once, for the disconnection of a database whose process was killed."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def with_refused_row(states: Sequence[Any]) -> tuple[Any, ...]:
    """
    Return *states*, one of which the database refuses to store; nothing if there is none that can be made so.

    What decides about the state later in the same transaction keeps the value that is refused.
    """
    for place, state in enumerate(states):
        name = "name" if isinstance(state, Product) else "payment_method"
        if hasattr(state, name):
            return (*states[:place], evolve(state, **{name: object()}), *states[place + 1 :])
    return ()


def open_file(path: Path, scope: Scope, draw_fault: DrawFault) -> Database:
    """Return the database in the file at *path* for the process *scope*; the file is made if there is none."""
    database = Database(f"sqlite:///{path}" if path.exists() else migrated_file(path))
    put_on_disk(database, scope, draw_fault)
    return database


def put_on_disk(database: Any, scope: Scope, draw_fault: DrawFault) -> None:
    """Let *database* work without threads, as a part of the process *scope*."""
    database._reader = LoopExecutor(database._reader._transactor)
    database._writer._committer = _ImmediateExecutor(scope, "write", draw_fault)
    database._reader._committer = _ImmediateExecutor(scope, "read", lambda: None)


def forget(database: Database) -> None:
    """Close the file as the end of the process does: what is not committed is lost."""
    opened: Any = database
    for queue in (opened._writer, opened._reader):
        queue._waiting.clear()
        queue._deferred.clear()
        queue._committer = _NoExecutor()
        queue._transactor.disconnect()
    database.engine.dispose()
