"""
SQLite: one file, one process, no server.

Rows go in many to a statement, and a statement has one of a few sizes, so that each text is compiled once and the
driver's statement cache knows it from then on.
"""

from __future__ import annotations

__all__ = ["SIZES", "Sqlite"]

import sqlite3
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Connection, Engine, NullPool, RootTransaction, Table, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from app.storage.errors import DatabaseConfigError
from app.storage.sql.dialect import ExclusiveAccess, Failure, Statement, invalidate_cache

BUSY_SECONDS = 2.0
"""How long we wait for somebody else's lock before we say that the database is out of reach."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Rows of one statement: the powers of two. SQLite takes 32,766 values in one."""

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA cache_size = -16384",
    "PRAGMA wal_autocheckpoint = 1000",
    "PRAGMA journal_size_limit = 67108864",
)


_PROBED = "probed"
_VERSION = "data_version"
_WAITS = "waits for locks"


class Parted:
    """A statement that exists in a few sizes; *text* says it for a given number of rows."""

    def __init__(self, text: Callable[[int], str]) -> None:
        self._texts = {size: text(size) for size in SIZES}

    def run(self, connection: Connection, rows: Sequence[Sequence[Any]], before: tuple[Any, ...] = ()) -> list[Any]:
        """Run it for *rows*, a few times if need be; see `app.storage.sql.dialect.Statement`."""
        # These texts and values need nothing of what SQLAlchemy does for a statement.
        execute = _driver(connection).execute
        found: list[Any] = []
        start, count = 0, len(rows)
        while start < count:
            size = min(1 << (count - start).bit_length() - 1, SIZES[-1])
            values = chain.from_iterable(rows[start : start + size])
            found += execute(self._texts[size], (*before, *values))
            start += size
        return found


class Sqlite:
    """See `app.storage.sql.dialect.Dialect`."""

    name = "sqlite"
    # The transaction has the whole database to itself from its beginning.
    locking = ""
    skip_locked = ""
    is_shared = False

    def engine(self, url: str) -> Engine:
        """Prepare an engine, and the folder of its file."""
        parsed = make_url(url)
        assert parsed.database is not None
        path = Path(parsed.database)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseConfigError(f"the database's folder cannot be made: {error.strerror}") from None
        engine = create_engine(
            parsed,
            connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False, "cached_statements": 512},
            poolclass=NullPool,  # whoever hangs up lets go of the file: a handle that went bad does not come back
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
            driver = _driver(connection)
            if _is_reading(connection):
                driver.execute("BEGIN")
                return
            driver.execute("BEGIN IMMEDIATE")
            try:
                (version,) = driver.execute("PRAGMA data_version").fetchone()
            except sqlite3.Error:
                driver.rollback()  # SQLAlchemy knows of no transaction yet
                raise
            if version != connection.info.get(_VERSION):  # somebody else has written since our last transaction
                connection.info[_VERSION] = version
                invalidate_cache(connection)

        return engine

    def acquire_exclusive(self, engine: Engine, name: str, seconds: float) -> ExclusiveAccess:
        """The lock on an empty database beside it, which goes with the process, however that ends."""
        claim = sqlite3.connect(f"{engine.url.database}-{name}.lock", timeout=seconds, isolation_level=None)
        try:
            claim.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            claim.close()
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            raise DatabaseConfigError(f"another process serves {name} from this file") from None
        return claim

    def begin_at_once(self, connection: Connection) -> RootTransaction | None:
        """Not if somebody else is writing."""
        if _is_reading(connection):  # takes no lock as it begins, and may have to wait for one later
            return connection.begin()
        if connection.info.get(_WAITS, True):
            _let_wait(connection, False)  # once it has begun, it never has to
        try:
            return connection.begin()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # the rest says what kind of busy
                raise
            _let_wait(connection, True)
            return None

    def classify(self, error: BaseException) -> Failure | None:
        """Locked, full, read-only, unreadable: all of it may pass."""
        return Failure.UNAVAILABLE if isinstance(error, OperationalError | sqlite3.OperationalError) else None

    def explain(self, error: DBAPIError) -> str:
        """Its own words name no path."""
        return str(error.orig)

    def is_conflict(self, error: BaseException) -> bool:
        """Nobody else writes meanwhile."""
        return False

    def is_disconnected(self, connection: Connection) -> bool:
        """There is nothing that could be cut."""
        return False

    def was_committed(self, engine: Engine, mark: Any) -> bool | None:
        """A commit that raises is none."""
        return False

    def probe(self, connection: Connection) -> None:
        """Its first page is written whether this changes it or not; a full disk refuses that."""
        _driver(connection).execute("PRAGMA user_version = 0")
        connection.info[_PROBED] = True

    def has_written(self, connection: Connection) -> bool:
        """A lock is to be had on a full disk, too."""
        return _is_reading(connection) or _driver(connection).total_changes > 0 or _PROBED in connection.info

    def try_lead(self, connection: Connection, name: str, is_fit: bool) -> bool:
        """There is nobody else."""
        return True

    def timestamp_sql(self, column: str) -> str:
        """It is kept as it is written."""
        return column

    def json_rows(self, columns: Sequence[Any]) -> str:
        """JSON is kept as text here; the others become what they are."""
        shown = (f"json({_quoted(c.name)})" if isinstance(c.type, JSON) else _quoted(c.name) for c in columns)
        return f"json_group_array(json_array({', '.join(shown)}))"

    def text(self, sql: str) -> str:
        """It wants it as it is."""
        return sql

    def by_keys(self, sql: str) -> Statement:
        """As many marks as keys."""
        return Parted(lambda size: sql.format(keys=f"IN ({', '.join('?' * size)})"))

    def insert(self, table: Table, names: Sequence[str], conflict: str = "") -> Statement:
        """As many rows of marks as rows."""
        return _insert("INSERT", table, names, conflict)

    def replace(self, table: Table, names: Sequence[str]) -> Statement:
        """``ON CONFLICT DO UPDATE`` would read each row that is there, and open a table for each that it changes."""
        return _insert("INSERT OR REPLACE", table, names)


def _is_reading(connection: Connection) -> bool:
    is_reading: bool = connection.get_execution_options().get("reading", False)
    return is_reading


def _let_wait(connection: Connection, waits: bool) -> None:
    seconds = BUSY_SECONDS if waits else 0.0
    _driver(connection).execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
    connection.info[_WAITS] = waits


def _driver(connection: Connection) -> sqlite3.Connection:
    driver: sqlite3.Connection = connection.connection.dbapi_connection  # type: ignore[assignment]
    return driver


def _insert(verb: str, table: Table, names: Sequence[str], conflict: str = "") -> Statement:
    columns = ", ".join(_quoted(name) for name in names)
    row = f"({', '.join('?' * len(names))})"
    return Parted(lambda size: f"{verb} INTO {table.name} ({columns}) VALUES {', '.join([row] * size)} {conflict}")


def _quoted(name: str) -> str:
    return f'"{name}"'
