"""
PostgreSQL: one server, any number of processes on one database.

Transactions are READ COMMITTED. Two that meet the same rows wait for each other in the order of the keys: known rows are
locked when they are loaded, new ones when they are inserted. Two that meet the same new thing at the same moment are
told apart by its primary key: the second is done again from its beginning, and then finds what the first has written.

One statement takes any number of rows, as one array for each column; the server prepares it once per connection.
"""

from __future__ import annotations

__all__ = ["Postgres"]

import re
import time
from collections.abc import Generator, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import (
    JSON,
    Boolean,
    Connection,
    DateTime,
    Engine,
    Integer,
    LargeBinary,
    NullPool,
    RootTransaction,
    Table,
    create_engine,
    event,
)
from sqlalchemy.exc import DBAPIError

from app.storage.errors import DatabaseConfigError
from app.storage.sql.dialect import TX_ID, Failure, Statement

T = TypeVar("T")

SETTLE_SECONDS = 5.0
"""How long we ask what became of a commit whose answer was lost."""

ANSWER_SECONDS = 12.0
"""How long a server may say nothing to a question, before its connection is given up."""

_ASK_AGAIN_SECONDS = 0.1

_PARAMETERS: dict[str, Any] = {
    "application_name": "fulfilment",
    "connect_timeout": 2,
    # A server that is gone without a word is found out within about ten seconds.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Of libpq, where the address does not say otherwise."""

_SETTINGS = {
    "timezone": "UTC",
    "lock_timeout": "2s",
    "statement_timeout": "10s",
    # A process that stands still in the middle of a transaction must not hold its locks for ever.
    "idle_in_transaction_session_timeout": "5s",
    # Every query of ours has its index; tables that were empty when a plan was made must not make it read them whole.
    "enable_seqscan": "off",
    "jit": "off",
}

_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WRITING = "BEGIN; SELECT pg_current_xact_id()::text"

_AGAIN = (
    errors.UniqueViolation,
    errors.SerializationFailure,
    errors.DeadlockDetected,
)
_TYPES = (
    (Integer, "bigint"),
    (Boolean, "boolean"),
    (DateTime, "timestamptz"),
    (JSON, "json"),
    (LargeBinary, "bytea"),
)


class _Connection(psycopg.Connection[Any]):
    """A connection whose server has to answer at some time: one that was halted keeps its sockets open."""

    answer_seconds: float | None = None

    def wait(self, gen: Any, *arguments: Any, **more: Any) -> Any:
        """Wait for what *gen* waits for; close the connection, and raise as if it were cut, when it takes too long."""
        seconds = ANSWER_SECONDS if self.answer_seconds is None else self.answer_seconds
        return super().wait(self._within(gen, time.monotonic() + seconds), *arguments, **more)

    def _within(self, gen: Generator[Any, Any, T], until: float) -> Generator[Any, Any, T]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > until:
                    self.close()
                    raise psycopg.OperationalError("the server does not answer")
                wanted = gen.send(ready)
        except StopIteration as end:
            answer: T = end.value
            return answer


class _Arrays:
    """A statement that takes its rows as one array for each column."""

    def __init__(self, text: str) -> None:
        self._text = text

    def run(self, connection: Connection, rows: Sequence[Sequence[Any]], before: tuple[Any, ...] = ()) -> list[Any]:
        """Run it for *rows*, once; see `app.storage.sql.dialect.Statement`."""
        if not rows:
            return []
        # Straight to the driver: these texts and values need nothing of what SQLAlchemy does for a statement.
        cursor: psycopg.Cursor[Any] = connection.connection.cursor()  # type: ignore[assignment]
        arrays = [list(column) for column in zip(*rows, strict=True)]
        cursor.execute(self._text, (*before, *arrays), prepare=True)
        return cursor.fetchall() if cursor.description is not None else []


class Postgres:
    """See `app.storage.sql.dialect.Dialect`."""

    name = "postgresql"
    locking = " FOR UPDATE"
    skip_locked = " FOR UPDATE SKIP LOCKED"
    is_shared = True

    def engine(self, url: str) -> Engine:
        """Prepare an engine; whatever libpq takes for an address is one."""
        try:
            parameters = {**_PARAMETERS, **conninfo_to_dict(url)}
        except psycopg.Error:
            raise DatabaseConfigError("this is no address that PostgreSQL's own programs could read") from None
        settings = "; ".join(f"SET {name} = '{value}'" for name, value in _SETTINGS.items())

        def connect() -> psycopg.Connection[Any]:
            # BEGIN is ours to say: the driver's own would cost a round trip, and says nothing.
            connection = _Connection.connect(autocommit=True, **parameters)
            try:
                connection.execute(settings)
            except psycopg.Error:
                connection.close()
                raise
            return connection

        # The two threads keep their connections; whatever else is opened is closed at once.
        engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool, query_cache_size=200)

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:
            driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
            if connection.get_execution_options().get("reading", False):
                driver.execute(_READING)
                return
            cursor = driver.execute(_WRITING, prepare=False)
            cursor.nextset()
            connection.info[TX_ID] = cursor.fetchone()[0]  # type: ignore[index]

        return engine

    def acquire_exclusive(self, engine: Engine, name: str, seconds: float) -> None:
        """Several may."""

    def begin_at_once(self, connection: Connection) -> RootTransaction | None:
        """Its server has to be asked."""
        return None

    def classify(self, error: BaseException) -> Failure | None:
        """Sort by SQLSTATE; an error without one says that the connection is gone."""
        error = getattr(error, "orig", None) or error
        if not isinstance(error, psycopg.Error):
            return None
        if isinstance(error, _AGAIN):
            return Failure.RETRY
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | errors.ReadOnlySqlTransaction):
            return Failure.UNAVAILABLE
        return None

    def explain(self, error: DBAPIError) -> str:
        """The driver's own words name the host."""
        state = getattr(error.orig, "sqlstate", None)
        # A connection that is refused comes without its SQLSTATE; the server's words stand at the end.
        said = str(error.orig)
        if state in ("28P01", "28000") or "authentication failed" in said or "no password supplied" in said:
            return "it refuses the user or the password"
        if state == "3D000" or re.search(r'FATAL: +database ".*" does not exist', said):
            return "there is no such database on the server"
        if state is None or state[:2] in ("08", "57"):
            return "nobody answers there"
        return f"it answers with SQLSTATE {state}"

    def is_conflict(self, error: BaseException) -> bool:
        """SQLSTATE 23505."""
        return isinstance(getattr(error, "orig", None) or error, errors.UniqueViolation)

    def is_disconnected(self, connection: Connection) -> bool:
        """SQLAlchemy lets go of a connection that it has seen break; the driver knows of the others."""
        return connection.invalidated or connection.connection.driver_connection.closed  # type: ignore[union-attr]

    def was_committed(self, engine: Engine, mark: Any) -> bool | None:
        """Ask the server, which remembers every transaction's end, over a connection that works."""
        until = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                with engine.connect() as fresh:
                    status = fresh.exec_driver_sql("SELECT pg_xact_status(%s::xid8)", (mark,)).scalar()
                if status != "in progress":
                    return None if status is None else status == "committed"
            except Exception as error:
                if self.classify(error) is None:
                    return None
            if time.monotonic() > until:
                return None
            time.sleep(_ASK_AGAIN_SECONDS)

    def probe(self, connection: Connection) -> None:
        """A transaction that has a number is written down as it commits."""
        connection.exec_driver_sql("SELECT txid_current()")

    def has_written(self, connection: Connection) -> bool:
        """Whoever answers has been reached; a full disk would have ended it."""
        return True

    def try_lead(self, connection: Connection, name: str, is_fit: bool) -> bool:
        """An advisory lock of the session: it ends with the connection, however that ends."""
        held: set[str] = connection.info.setdefault("leads", set())
        if is_fit == (name in held):
            return is_fit
        ask = "pg_try_advisory_lock" if is_fit else "pg_advisory_unlock"
        if connection.exec_driver_sql(f"SELECT {ask}(%s)", (lock_number(name),)).scalar() and is_fit:
            held.add(name)
        else:
            held.discard(name)
        return name in held

    def timestamp_sql(self, column: str) -> str:
        """All of one length, in UTC."""
        return f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"')"

    def json_rows(self, columns: Sequence[Any]) -> str:
        """As text: it is read by us, not by the driver."""
        shown = ", ".join(_quoted(column.name) for column in columns)
        return f"coalesce(json_agg(json_build_array({shown})), '[]')::text"

    def text(self, sql: str) -> str:
        """Its marks are %s."""
        return sql.replace("%", "%%").replace("?", "%s")

    def by_keys(self, sql: str) -> Statement:
        """One array of keys."""
        return _Arrays(self.text(sql.format(keys="= ANY(?)")))

    def insert(self, table: Table, names: Sequence[str], conflict: str = "") -> Statement:
        """One array for each column."""
        columns = ", ".join(_quoted(name) for name in names)
        arrays = ", ".join(f"%s::{_type(table.columns[name].type)}[]" for name in names)
        return _Arrays(f"INSERT INTO {table.name} ({columns}) SELECT * FROM unnest({arrays}) {conflict}")

    def replace(self, table: Table, names: Sequence[str]) -> Statement:
        """Each member but the key is changed."""
        key, *others = (_quoted(name) for name in names)
        changes = ", ".join(f"{name} = excluded.{name}" for name in others)
        return self.insert(table, names, f"ON CONFLICT ({key}) DO UPDATE SET {changes}")


def lock_number(name: str) -> int:
    """Return the number under which processes of ours meet about *name*."""
    return int.from_bytes(blake2b(f"fulfilment {name}".encode(), digest_size=8).digest(), signed=True)


def _type(column_type: Any) -> str:
    return next((name for cls, name in _TYPES if isinstance(column_type, cls)), "text")


def _quoted(name: str) -> str:
    return f'"{name}"'
