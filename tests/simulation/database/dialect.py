"""The dialect and the executor of a process on a simulated database server."""

from __future__ import annotations

__all__ = ["SharedDialect", "open_shared", "virtual_retries"]

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from sqlalchemy import Connection, Engine, NullPool, RootTransaction, Table, create_engine, event
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only, greenlet_spawn

from app.storage.sql import transactions
from app.storage.sql.database import Database, LoopExecutor
from app.storage.sql.dialect import Failure
from app.storage.sql.sqlite import SizedStatement, Sqlite
from app.storage.sql.transactions import drive
from tests.simulation.database.errors import (
    Deadlock,
    Disconnected,
    LockTimeout,
    SerializationFailure,
    TransactionAborted,
)
from tests.simulation.database.server import DatabaseServer
from tests.simulation.database.session import FOR_UPDATE, SKIP_LOCKED, Session
from tests.simulation.world.scope import Scope


class _Compiler(SQLiteCompiler):
    """Writes the clauses with which a select locks rows."""

    def for_update_clause(self, select: Any, **kw: Any) -> str:
        return SKIP_LOCKED if select._for_update_arg.skip_locked else FOR_UPDATE


class SharedDialect(Sqlite):
    """SQLite's SQL with the promises of a server that several processes share, for the process *scope*."""

    for_update, skip_locked = FOR_UPDATE, SKIP_LOCKED
    is_shared = True

    def __init__(self, server: DatabaseServer, scope: Scope) -> None:
        super().__init__()
        self._server, self._scope = server, scope

    def engine(self, url: str) -> Engine:
        engine = create_engine("sqlite://", creator=lambda: self._server.connect(self._scope), poolclass=NullPool, query_cache_size=200)
        engine.dialect.statement_compiler = _Compiler

        @event.listens_for(engine, "begin")
        def on_begin(connection: Connection) -> None:
            _session(connection).begin(is_reading=connection.get_execution_options().get("reading", False))

        return engine

    def begin_nowait(self, connection: Connection) -> RootTransaction | None:
        return None

    def classify(self, error: BaseException) -> Failure | None:
        found = getattr(error, "orig", None) or error
        if self.is_conflict(error) or isinstance(found, SerializationFailure | Deadlock):
            return Failure.RETRY
        if isinstance(found, TransactionAborted):
            return Failure.REFUSED
        return Failure.UNAVAILABLE if isinstance(found, Disconnected | LockTimeout) else super().classify(error)

    def explain(self, error: DBAPIError) -> str:
        return str(error.orig)

    def is_conflict(self, error: BaseException) -> bool:
        return "UNIQUE constraint" in str(getattr(error, "orig", None) or error)

    def is_disconnected(self, connection: Connection) -> bool:
        return connection.invalidated or _session(connection).has_ended

    def transaction_id(self, connection: Connection) -> Any:
        session = _session(connection)
        return None if session.is_reading else session.last_transaction

    def was_committed(self, engine: Engine, tx_id: Any) -> bool | None:
        return self._server.outcome(self._scope, tx_id)

    def has_written(self, connection: Connection) -> bool:
        return True

    def try_lead(self, connection: Connection, name: str, is_eligible: bool) -> bool:
        return self._server.try_lead(_session(connection), name, is_eligible=is_eligible)

    def insert_numbered(self, table: Table, *, is_next: bool) -> SizedStatement:
        return _SequenceInsert(table, is_next)


class _SequenceInsert(SizedStatement):
    """An insert of one row, whose number comes from the server's sequence."""

    def __init__(self, table: Table, is_next: bool) -> None:
        self._sql, self._is_next = f"INSERT INTO {table.name} VALUES (?, ?, ?)", is_next

    def execute(self, connection: Connection, rows: Sequence[Sequence[Any]], prefix: tuple[Any, ...] = ()) -> None:
        session = _session(connection)
        session.execute(self._sql, (session.server.next_number(session, is_next=self._is_next), *rows[0]))


class _SessionExecutor(LoopExecutor):
    """Runs each transaction in a coroutine of its own, which waits at each statement as a thread would."""

    async def _run(self) -> None:
        while self._waiting:
            self._report(await greenlet_spawn(drive, self._transactor.execute_together(self._next_jobs())))
            await asyncio.sleep(0)
        self._is_idle = True


def open_shared(server: DatabaseServer, scope: Scope) -> Database:
    """Return the database of the process *scope* on *server*."""
    with mock.patch("app.storage.sql.database.open_dialect", return_value=SharedDialect(server, scope)):
        database: Any = Database("")
    database._writer = _SessionExecutor(database._writer._transactor)
    database._reader = _SessionExecutor(database._reader._transactor)
    opened: Database = database
    return opened


@contextmanager
def virtual_retries(replicas: int, seed: int) -> Iterator[None]:
    """Repeat transactions on virtual time where a module has several *replicas*."""
    if replicas == 1:
        yield
        return
    time = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time(), sleep=lambda seconds: await_only(asyncio.sleep(seconds)))
    with mock.patch.object(transactions, "time", time), mock.patch.object(transactions, "random", random.Random(f"{seed}/retries")):
        yield


def _session(connection: Connection) -> Session:
    session: Session = connection.connection.dbapi_connection  # type: ignore[assignment]
    return session
