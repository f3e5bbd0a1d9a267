"""
The PostgreSQL dialect: one server, any number of processes on one database.

Transactions are READ COMMITTED. All of them lock rows in the order of the keys: existing rows when they are loaded, new
ones when they are inserted. If two transactions insert the same row, the primary key lets the first succeed; the second
is repeated from its beginning and then finds the row.

One statement takes any number of rows, as one array for each column; the server prepares it once per connection. Several
statements share a round trip; see `app.storage.sql.postgres_pipeline`.
"""

from __future__ import annotations

__all__ = ["Postgres"]

import re
import time
from collections.abc import Sequence
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
from app.storage.sql import postgres_statements as statements
from app.storage.sql.claims import AdvisoryLock
from app.storage.sql.dialect import ExclusiveAccess, Failure, Statement
from app.storage.sql.postgres_fitness import unfitness
from app.storage.sql.postgres_pipeline import Pipeline, TimedConnection
from app.storage.sql.postgres_statements import PIPELINE, ArrayStatement, array_encoder, pipeline_of, text_array

T = TypeVar("T")

OUTCOME_SECONDS = 5.0
"""How long the server is asked for the outcome of a commit whose reply was lost."""

_OUTCOME_POLL_SECONDS = 0.1

LEAD_SECONDS = 30
"""For how long the process that leads may be silent; it writes every second. A halted transaction is ended earlier."""

_PARAMETERS: dict[str, Any] = {
    "application_name": "fulfilment",
    "connect_timeout": 2,
    # Detect a server that is unreachable without having closed the connection within about ten seconds.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Connection parameters of libpq; the URL overrides them. ``client_encoding`` is always UTF-8, whatever URL or role specify."""

_SETTINGS = {
    "timezone": "UTC",
    "lock_timeout": "2s",
    "statement_timeout": "10s",
    # A process that halts in the middle of a transaction must not hold its locks without an end.
    "idle_in_transaction_session_timeout": "5s",
    # The server notices within about ten seconds that this machine is gone, and gives up what the session holds.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
    # Every query has its index; a plan made while the tables were empty must not scan them whole later.
    "enable_seqscan": "off",
    "jit": "off",
}

_TIMELINE = "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
"""The server's timeline, which changes when a standby is promoted; an error on a standby."""

RUN_SQL = "SELECT coalesce(extract(epoch FROM stats_reset)::text, '-') FROM pg_stat_bgwriter"
"""When the server has discarded its statistics: since it began, or since its last crash, which no session survives."""

_CONFLICTS = (
    errors.UniqueViolation,
    errors.SerializationFailure,
    errors.DeadlockDetected,
)
_CLASSES_OF_THE_WORK = ("22", "23")
"""SQLSTATE classes that are about the data of a statement: data exception, integrity constraint violation."""

_TYPES = (
    (Integer, "bigint"),
    (Boolean, "boolean"),
    (DateTime, "timestamptz"),
    (JSON, "json"),
    (LargeBinary, "bytea"),
)


class Postgres:
    """Implements `app.storage.sql.dialect.Dialect`; docstrings here describe only how."""

    name = "postgresql"
    for_update = " FOR UPDATE"
    skip_locked = " FOR UPDATE SKIP LOCKED"
    # Only a member of pg_read_all_stats sees what other users do; every user sees the replication slots.
    oldest_snapshot_sql: str | None = (
        "SELECT greatest(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)"
        " FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()"
    )
    is_shared = True
    wal_path: str | None = None
    insert_numbered = staticmethod(statements.insert_numbered)
    prepare_numbers = staticmethod(statements.prepare_numbers)
    writers_sql = staticmethod(statements.writers_sql)
    histories_sql = statements.HISTORIES_SQL

    def engine(self, url: str) -> Engine:
        """Prepare an engine; any connection string of libpq is a valid URL."""
        try:
            parameters = {**_PARAMETERS, **conninfo_to_dict(url), "client_encoding": "UTF8"}
        except psycopg.Error:
            raise DatabaseConfigError("this is not a valid PostgreSQL connection string") from None
        settings = "; ".join(f"SET {name} = '{value}'" for name, value in _SETTINGS.items())

        def connect() -> psycopg.Connection[Any]:
            # Autocommit: the driver's own BEGIN would cost a round trip of its own.
            connection: TimedConnection = TimedConnection.connect(autocommit=True, **parameters)
            try:
                connection.execute(settings)
                connection.run = str(connection.execute(RUN_SQL).fetchone())
            except psycopg.Error:
                connection.close()
                raise
            return connection

        # No pool: writer and reader keep their connections, and all others are closed after use.
        engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool, query_cache_size=200)

        @event.listens_for(engine, "begin")
        def on_begin(connection: Connection) -> None:
            driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
            pipeline = connection.info.get(PIPELINE)
            if pipeline is None:
                pipeline = connection.info[PIPELINE] = Pipeline(driver)
            if connection.get_execution_options().get("reading", False):
                pipeline.begin("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            else:
                pipeline.begin("BEGIN", f"SELECT pg_current_xact_id()::text || ' ' || {_TIMELINE}")

        @event.listens_for(engine, "before_cursor_execute")
        def before_execute(connection: Connection, *_: Any) -> None:
            pipeline_of(connection).exchange()

        @event.listens_for(engine, "commit")
        def on_commit(connection: Connection) -> None:
            pipeline_of(connection).commit()

        @event.listens_for(engine, "rollback")
        def on_rollback(connection: Connection) -> None:
            if not connection.invalidated:  # otherwise it is broken, and that error is raised further
                connection.info.pop("has limit", None)
                pipeline_of(connection).rollback()

        return engine

    def acquire_exclusive(self, engine: Engine, name: str, seconds: float) -> ExclusiveAccess:
        """Take an advisory lock of a session of its own; it ends with the connection, however that ends."""
        return AdvisoryLock(engine, name, _lock_number(name), seconds)

    def begin_nowait(self, connection: Connection) -> RootTransaction | None:
        """None: BEGIN waits for the server."""
        return None

    def classify(self, error: BaseException) -> Failure | None:
        """By SQLSTATE; without one, the connection is broken, or the driver has refused a value."""
        error = getattr(error, "orig", None) or error
        if not isinstance(error, psycopg.Error):
            return None
        if isinstance(error, _CONFLICTS):
            return Failure.RETRY
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | errors.ReadOnlySqlTransaction):
            return Failure.UNAVAILABLE
        return None if error.sqlstate is None or error.sqlstate[:2] in _CLASSES_OF_THE_WORK else Failure.REFUSED

    def unfitness(self, connection: Connection) -> str:
        """See `app.storage.sql.postgres_fitness`."""
        return unfitness(connection)

    def explain(self, error: DBAPIError) -> str:
        """By SQLSTATE, in texts of this program: the driver's message contains the host."""
        state = getattr(error.orig, "sqlstate", None)
        # The error of a refused connection has no SQLSTATE; the server's message is at the end of its text.
        text = str(error.orig)
        if state in ("28P01", "28000") or "authentication failed" in text or "no password supplied" in text:
            return "the server refuses the user or the password"
        if state == "3D000" or re.search(r'FATAL: +database ".*" does not exist', text):
            return "there is no such database on the server"
        if state is None or state[:2] in ("08", "57"):
            return "no server answers there"
        return f"the server answers with SQLSTATE {state}"

    def is_conflict(self, error: BaseException) -> bool:
        """SQLSTATE 23505."""
        return isinstance(getattr(error, "orig", None) or error, errors.UniqueViolation)

    def is_disconnected(self, connection: Connection) -> bool:
        """SQLAlchemy invalidates a connection that it has seen break; the driver knows of the others."""
        return connection.invalidated or connection.connection.driver_connection.closed  # type: ignore[union-attr]

    @property
    def lost(self) -> str:
        """The server's files are its own affair."""
        return ""

    def verify_commit(self, connection: Connection) -> None:
        """Nothing: the server has answered."""

    def abandon(self, connection: Connection) -> None:
        """Nothing: its files are never lost."""

    def transaction_id(self, connection: Connection) -> str | None:
        """The server's 64-bit number of the transaction, and the timeline and the run of the server to which it belongs."""
        number = pipeline_of(connection).transaction_id
        return None if number is None else f"{number} {_run(connection)}"

    def was_committed(self, engine: Engine, tx_id: Any) -> bool | None:
        """
        Ask the server, which records the outcome of every transaction, over a new connection.

        Unknown on another timeline, and after a crash: a standby that has been promoted gives the numbers that it has not seen
        to other transactions, and a server that has crashed those that it had not written to its log.
        """
        number, timeline, run = tx_id.split(maxsplit=2)
        sql = f"SELECT CASE WHEN {_TIMELINE} = %s THEN pg_xact_status(%s::xid8) END"
        until = time.monotonic() + OUTCOME_SECONDS
        while True:
            try:
                with engine.connect() as connection:
                    if _run(connection) != run:
                        return None
                    status = connection.exec_driver_sql(sql, (timeline, number)).scalar()
                if status != "in progress":
                    return None if status is None else status == "committed"
            except Exception as error:
                if self.classify(error) is None:
                    return None
            if time.monotonic() > until:
                return None
            time.sleep(_OUTCOME_POLL_SECONDS)

    def probe(self, connection: Connection) -> None:
        """Assign a transaction id: the commit of a transaction that has one is written to disk."""
        connection.exec_driver_sql("SELECT txid_current()")

    def has_written(self, connection: Connection) -> bool:
        """True: the server has answered, and a full disk would have stopped it."""
        return True

    def try_lead(self, connection: Connection, name: str, is_eligible: bool) -> bool:
        """
        Take an advisory lock of the session; it ends with the connection, however that ends.

        The server closes a session without a statement for `LEAD_SECONDS`: a process that is halted or gone must not lead.
        """
        held: set[str] = connection.info.setdefault("held leads", set())
        if is_eligible == (name in held) and connection.info.get("has limit", not is_eligible):
            return is_eligible
        # A rollback takes the limit away, but not the lock, which counts how often the session has taken it.
        lock = "%s IS NOT NULL" if name in held else "pg_try_advisory_lock(%s)"
        limit = f"set_config('idle_session_timeout', '{LEAD_SECONDS}s', false)"
        has_setting = "current_setting('idle_session_timeout', true) IS NOT NULL"  # not PostgreSQL 13
        sql = f"SELECT {lock}, CASE WHEN {has_setting} THEN {limit} END" if is_eligible else "SELECT pg_advisory_unlock(%s)"
        if connection.exec_driver_sql(sql, (_lock_number(name),)).scalar() and is_eligible:
            held.add(name)
            connection.info["has limit"] = True
        else:
            held.discard(name)
        return name in held

    def timestamp_sql(self, column: str) -> str:
        """Format it in UTC, with microseconds, so that all texts have one length."""
        return f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"')"

    def later_sql(self, column: str) -> str:
        """Add an interval."""
        return f"{column} + make_interval(secs => ?)"

    def now_sql(self) -> str:
        """``clock_timestamp()``: ``now()`` is when the transaction began."""
        return self.timestamp_sql("clock_timestamp()")

    def json_rows_sql(self, columns: Sequence[Any]) -> str:
        """Cast to text, so that the driver does not parse it."""
        values = ", ".join(_quoted(column.name) for column in columns)
        return f"coalesce(json_agg(json_build_array({values})), '[]')::text"

    def position_sql(self, column: str) -> str:
        """Use strpos(): the type json keeps the text as it was written."""
        return f"strpos({column}::text, ?)"

    def to_driver_sql(self, sql: str) -> str:
        """Use ``%s`` placeholders."""
        return sql.replace("%", "%%").replace("?", "%s")

    def by_keys(self, sql: str) -> Statement:
        """Compare with one array of keys."""
        return ArrayStatement(sql.format(keys="= ANY(?)"), [text_array])

    def insert(self, table: Table, keys: Sequence[str], conflict: str = "") -> Statement:
        """Insert from ``unnest`` with one array for each column."""
        columns = [table.columns[key] for key in keys]
        names = ", ".join(_quoted(column.name) for column in columns)
        arrays = ", ".join(f"?::{_type(column.type)}[]" for column in columns)
        sql = f"INSERT INTO {table.name} ({names}) SELECT * FROM unnest({arrays}) {conflict}"
        return ArrayStatement(sql, [array_encoder(column.type) for column in columns])

    def replace(self, table: Table, keys: Sequence[str]) -> Statement:
        """Insert, and on a conflict update every column but the primary key."""
        primary, *others = (_quoted(table.columns[key].name) for key in keys)
        changes = ", ".join(f"{name} = excluded.{name}" for name in others)
        return self.insert(table, keys, f"ON CONFLICT ({primary}) DO UPDATE SET {changes}")


def _lock_number(name: str) -> int:
    """Return the number of the advisory lock *name*, the same in every process of this application."""
    return int.from_bytes(blake2b(f"fulfilment {name}".encode(), digest_size=8).digest(), signed=True)


def _type(column_type: Any) -> str:
    return next((name for cls, name in _TYPES if isinstance(column_type, cls)), "text")


def _quoted(name: str) -> str:
    return f'"{name}"'


def _run(connection: Connection) -> str:
    driver: TimedConnection = connection.connection.driver_connection  # type: ignore[assignment]
    return driver.run
