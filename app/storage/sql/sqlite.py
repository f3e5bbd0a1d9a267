"""
The SQLite dialect: one file, one process, no server.

A statement takes many rows and exists in a few sizes, so that each text is compiled once and stays in the driver's
statement cache.
"""

from __future__ import annotations

__all__ = ["SIZES", "SizedStatement", "Sqlite"]

import ctypes
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Connection, Engine, NullPool, RootTransaction, Table, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError

from app.storage.errors import DatabaseConfigError
from app.storage.sql.claims import FileLock
from app.storage.sql.dialect import ExclusiveAccess, Failure, Statement, invalidate_cache
from app.storage.sql.file_watch import FileWatch, create_private, open_watched

BUSY_SECONDS = 2.0
"""How long to wait for another connection's lock before the database counts as out of reach."""

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Rows of one statement. A batch takes two or three of them, and each text is compiled once. SQLite takes 32,766 values in one."""

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA cache_size = -16384",
    "PRAGMA wal_autocheckpoint = 1000",
    "PRAGMA journal_size_limit = 67108864",
)

_CODES_OF_THE_WORK = {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_RANGE}
"""Result codes that are about the data of a statement."""

_FAILURES = dict.fromkeys(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
    ),
    Failure.UNAVAILABLE,
)
"""Result codes that may pass by themselves; any other one needs an operator: damaged, no such table, not a database."""

_ERRORS_OF_THE_WORK = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)

# Keys in a connection's ``info``.
_PROBED = "probed"
_DATA_VERSION = "data_version"
_LAST_NUMBER = "last number"
_WAITS_FOR_LOCKS = "waits for locks"


class SizedStatement:
    """A statement that exists in a few sizes; *sql_for* returns its text for a number of rows."""

    def __init__(self, sql_for: Callable[[int], str]) -> None:
        self._texts = {size: sql_for(size) for size in SIZES}

    def execute(self, connection: Connection, rows: Sequence[Sequence[Any]], prefix: tuple[Any, ...] = ()) -> None:
        """Execute it for *rows*; see `app.storage.sql.dialect.Statement`."""
        self.fetch(connection, rows, prefix)

    def fetch(
        self, connection: Connection, rows: Sequence[Sequence[Any]], prefix: tuple[Any, ...] = ()
    ) -> Callable[[], list[Any]]:
        """Execute it for *rows*, in several parts if necessary; see `app.storage.sql.dialect.Statement`."""
        # Given to the driver directly: SQLAlchemy has nothing to add to these texts and values.
        execute = _driver(connection).execute
        found: list[Any] = []
        start, count = 0, len(rows)
        while start < count:
            size = SIZES[bisect_right(SIZES, count - start) - 1]
            values = chain.from_iterable(rows[start : start + size])
            found += execute(self._texts[size], (*prefix, *values))
            start += size
        return lambda: found


class Sqlite:
    """Implements `app.storage.sql.dialect.Dialect`; docstrings here describe only how."""

    name = "sqlite"
    # A writing transaction locks the whole database when it begins.
    for_update = ""
    skip_locked = ""
    oldest_snapshot_sql: str | None = None
    is_shared = False
    histories_sql = "SELECT tbl_name FROM sqlite_master WHERE name GLOB '*_history_by_time' ORDER BY tbl_name"

    def __init__(self) -> None:
        self._watch: FileWatch | None = None

    @property
    def wal_path(self) -> str | None:
        """Beside the database file."""
        return None if self._watch is None else self._watch.path + "-wal"

    def engine(self, url: str) -> Engine:
        """Prepare an engine; create the folder of its file."""
        parsed = make_url(url)
        assert parsed.database is not None
        path = Path(parsed.database)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseConfigError(f"the database's folder cannot be created: {error.strerror}") from None
        watch = self._watch = FileWatch(path)

        engine = create_engine(
            parsed,
            # The driver keeps the statements of three modules in all sizes.
            connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False, "cached_statements": 1024},
            poolclass=NullPool,  # disconnecting closes the file: a broken handle is not used again
            # Most statements are prepared here; SQLAlchemy's cache serves the few others.
            query_cache_size=200,
        )

        @event.listens_for(engine, "do_connect")
        def connect(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> sqlite3.Connection:
            return open_watched(path, watch, _PRAGMAS, options)

        @event.listens_for(engine, "begin")
        def on_begin(connection: Connection) -> None:
            # IMMEDIATE: a deferred transaction that begins to write can fail with BUSY_SNAPSHOT, which no waiting cures.
            driver = _driver(connection)
            watch.verify(driver)
            if _is_reading(connection):
                driver.execute("BEGIN")
                return
            driver.execute("BEGIN IMMEDIATE")
            try:
                (version,) = driver.execute("PRAGMA data_version").fetchone()
                if version != connection.info.get(_DATA_VERSION):  # another connection has written since the last transaction
                    connection.info.pop(_LAST_NUMBER, None)
                    connection.info[_DATA_VERSION] = version
                    invalidate_cache(connection)
            except sqlite3.Error:
                driver.rollback()  # SQLAlchemy does not know of the transaction yet
                raise

        return engine

    def acquire_exclusive(self, engine: Engine, name: str, seconds: float) -> ExclusiveAccess:
        """Lock an empty database file beside it; the lock ends with the process, however that ends."""
        path = f"{engine.url.database}-{name}.lock"
        create_private(path)
        lock = FileLock(path, name, seconds)
        if self._watch is not None:
            self._watch.add(path)
        return lock

    def verify_commit(self, connection: Connection) -> None:
        """Look at the files once more: what was committed to a file that was moved away meanwhile is not stored."""
        if self._watch is not None:
            self._watch.verify(_driver(connection))

    @property
    def lost(self) -> str:
        """What `FileWatch` has found."""
        return "" if self._watch is None else self._watch.lost

    def abandon(self, connection: Connection) -> None:
        """
        Keep *connection* open until the process ends, even while the interpreter shuts down.

        To close the last one would write into the file that was moved away, and delete a ``-wal`` at the old path, which
        may belong to the file that was put there.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_driver(connection)))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))

    def begin_nowait(self, connection: Connection) -> RootTransaction | None:
        """Return None if another connection is writing."""
        if _is_reading(connection):  # takes no lock when it begins, but may have to wait for one later
            return connection.begin()
        if _WAITS_FOR_LOCKS not in connection.info:
            # What a statement of many rows may have to undo exceeds the 64 KiB that SQLite keeps out of temporary files.
            _driver(connection).execute("PRAGMA temp_store = MEMORY")
        if connection.info.get(_WAITS_FOR_LOCKS, True):
            _set_waiting(connection, False)  # a writing transaction never waits once it has begun
        try:
            return connection.begin()
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0)  # an error of `FileWatch` has none
            if code & 0xFF != sqlite3.SQLITE_BUSY:  # the higher bits give the kind of busy
                raise
            _set_waiting(connection, True)
            return None

    def classify(self, error: BaseException) -> Failure | None:
        """By SQLite's result code; an error without one is the driver's own, about a value, or about a closed connection."""
        error = getattr(error, "orig", None) or error
        if not isinstance(error, sqlite3.Error):
            return None
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None:
            return None if code & 0xFF in _CODES_OF_THE_WORK else _FAILURES.get(code & 0xFF, Failure.REFUSED)
        is_ours = isinstance(error, _ERRORS_OF_THE_WORK) and "closed" not in str(error)
        return None if is_ours else Failure.UNAVAILABLE

    def unfitness(self, connection: Connection) -> str:
        """Nothing: this program has made the file, or SQLite reports that it is not a database."""
        return ""

    def explain(self, error: DBAPIError) -> str:
        """SQLite's own message, which contains no path."""
        return str(error.orig)

    def is_conflict(self, error: BaseException) -> bool:
        """False: no other process inserts rows."""
        return False

    def is_disconnected(self, connection: Connection) -> bool:
        """False: there is no network connection."""
        return False

    def transaction_id(self, connection: Connection) -> None:
        """None: a commit that raises has not happened."""

    def was_committed(self, engine: Engine, tx_id: Any) -> bool | None:
        """False: a commit that raises has not happened."""
        return False

    def probe(self, connection: Connection) -> None:
        """Write the first page, which SQLite does here even if nothing has changed: on a full disk this fails."""
        _driver(connection).execute("PRAGMA user_version = 0")
        connection.info[_PROBED] = True

    def has_written(self, connection: Connection) -> bool:
        """Return True only after a write: a lock can be acquired on a full disk, too."""
        return _is_reading(connection) or _driver(connection).total_changes > 0 or _PROBED in connection.info

    def try_lead(self, connection: Connection, name: str, is_eligible: bool) -> bool:
        """True: there is no other process."""
        return True

    def timestamp_sql(self, column: str) -> str:
        """The column itself: times are stored as these texts."""
        return column

    def later_sql(self, column: str) -> str:
        """Calculate with the text up to the seconds; append the fraction and the offset as they are."""
        return f"strftime('%Y-%m-%dT%H:%M:%S', substr({column}, 1, 19), ? || ' seconds') || substr({column}, 20)"

    def now_sql(self) -> None:
        """None: SQLite has the clock of this process."""

    def json_rows_sql(self, columns: Sequence[Any]) -> str:
        """JSON is stored as text and must be parsed; other types need no conversion."""
        values = (f"json({_quoted(c.name)})" if isinstance(c.type, JSON) else _quoted(c.name) for c in columns)
        return f"json_group_array(json_array({', '.join(values)}))"

    def position_sql(self, column: str) -> str:
        """Use instr(): JSON is stored as text."""
        return f"instr({column}, ?)"

    def to_driver_sql(self, sql: str) -> str:
        """*sql* itself: the driver's placeholder is ``?``."""
        return sql

    def by_keys(self, sql: str) -> Statement:
        """Write ``IN`` with one placeholder for each key."""
        return SizedStatement(lambda size: sql.format(keys=f"IN ({', '.join('?' * size)})"))

    def insert(self, table: Table, keys: Sequence[str], conflict: str = "") -> Statement:
        """Write ``VALUES`` with one tuple of placeholders for each row."""
        return _insert("INSERT", table, keys, conflict)

    def prepare_numbers(self, engine: Engine, tables: Sequence[str]) -> None:
        """Nothing: each number is looked up."""

    def writers_sql(self, tables: Sequence[str]) -> None:
        """None: the database is locked."""

    def insert_numbered(self, table: Table, *, is_next: bool) -> Statement:
        """Use the number after the last one; the last one is looked up in all histories if another connection has written."""
        return _NumberedInsert(table, int(is_next))

    def replace(self, table: Table, keys: Sequence[str]) -> Statement:
        """Use ``INSERT OR REPLACE``: ``ON CONFLICT DO UPDATE`` reads each row that exists and opens a table for each."""
        return _insert("INSERT OR REPLACE", table, keys)


class _NumberedInsert(SizedStatement):
    """An insert of one row, whose number is the last one in the histories of the file plus *step*."""

    def __init__(self, table: Table, step: int) -> None:
        self._sql, self._step = f"INSERT INTO {table.name} VALUES (?, ?, ?)", step

    def execute(self, connection: Connection, rows: Sequence[Sequence[Any]], prefix: tuple[Any, ...] = ()) -> None:
        driver, info = _driver(connection), connection.info
        last = info[_LAST_NUMBER] if _LAST_NUMBER in info else _last_number(driver)
        # A transaction that is rolled back leaves a gap.
        info[_LAST_NUMBER] = number = last + self._step
        driver.execute(self._sql, (number, *rows[0]))


def _last_number(driver: sqlite3.Connection) -> int:
    """Return the greatest number in all histories of the file; 0 if they are empty."""
    found = [f"SELECT max(number) AS last FROM {name}" for (name,) in driver.execute(Sqlite.histories_sql)]
    (last,) = driver.execute(f"SELECT coalesce(max(last), 0) FROM ({' UNION ALL '.join(found)})").fetchone()
    return int(last)


def _is_reading(connection: Connection) -> bool:
    is_reading: bool = connection.get_execution_options().get("reading", False)
    return is_reading


def _set_waiting(connection: Connection, waits: bool) -> None:
    """Wait for locks, or fail at once."""
    seconds = BUSY_SECONDS if waits else 0.0
    _driver(connection).execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
    connection.info[_WAITS_FOR_LOCKS] = waits


def _driver(connection: Connection) -> sqlite3.Connection:
    driver: sqlite3.Connection = connection.connection.dbapi_connection  # type: ignore[assignment]
    return driver


def _insert(verb: str, table: Table, keys: Sequence[str], conflict: str = "") -> Statement:
    columns = ", ".join(_quoted(table.columns[key].name) for key in keys)
    row = f"({', '.join('?' * len(keys))})"
    return SizedStatement(lambda size: f"{verb} INTO {table.name} ({columns}) VALUES {', '.join([row] * size)} {conflict}")


def _quoted(name: str) -> str:
    return f'"{name}"'
