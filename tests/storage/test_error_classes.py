"""Whose fault an error of a database is: the message's, if it is about its data; in all other cases the database's."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import errors
from sqlalchemy import exc

from app.storage.errors import DatabaseConfigError
from app.storage.sql.claims import FileLock
from app.storage.sql.dialect import Failure
from app.storage.sql.postgres import Postgres
from app.storage.sql.sqlite import BUSY_SECONDS, Sqlite
from app.storage.sql.transactions import _classify, _Recovery

SQLSTATES = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, psycopg.Error) and cls.sqlstate}
"""Every error of PostgreSQL that psycopg knows."""

CODES = {name: getattr(sqlite3, name) for name in dir(sqlite3) if name.startswith("SQLITE_") and "DENY" not in name}
RESULT_CODES = {name: code for name, code in CODES.items() if 0 < code & 0xFF < 27 and name in {
    "SQLITE_ERROR", "SQLITE_INTERNAL", "SQLITE_PERM", "SQLITE_ABORT", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_NOMEM",
    "SQLITE_READONLY", "SQLITE_INTERRUPT", "SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTFOUND", "SQLITE_FULL", "SQLITE_CANTOPEN",
    "SQLITE_PROTOCOL", "SQLITE_EMPTY", "SQLITE_SCHEMA", "SQLITE_TOOBIG", "SQLITE_CONSTRAINT", "SQLITE_MISMATCH", "SQLITE_MISUSE",
    "SQLITE_NOLFS", "SQLITE_AUTH", "SQLITE_FORMAT", "SQLITE_RANGE", "SQLITE_NOTADB",
}}  # fmt: skip


def wrapped(error: Exception) -> exc.DBAPIError:
    """Return *error* as SQLAlchemy raises it."""
    return exc.DBAPIError("SELECT", (), error)


@pytest.mark.parametrize("name", SQLSTATES)
def test_postgresql_blames_a_message_for_its_data_alone(name: str) -> None:
    """SQLSTATE classes 22 and 23; a conflict is tried again first."""
    error = SQLSTATES[name]("text")
    found = Postgres().classify(error)
    assert found is Postgres().classify(wrapped(error))
    if error.sqlstate in ("23505", "40001", "40P01"):
        assert found is Failure.RETRY
    else:
        assert (found is None) == (str(error.sqlstate)[:2] in ("22", "23"))


@given(st.from_regex(r"[0-9A-Z]{5}", fullmatch=True))
def test_an_unknown_sqlstate_is_the_databases(state: str) -> None:
    """A newer server may have more of them."""
    error = psycopg.DatabaseError("text")
    error.sqlstate = state
    assert (Postgres().classify(error) is None) == (state[:2] in ("22", "23"))


@pytest.mark.parametrize(
    ("error", "is_work"),
    [
        (psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"), True),
        (psycopg.ProgrammingError("cannot adapt type 'object'"), True),
        (psycopg.OperationalError("the connection is closed"), False),
        (psycopg.InterfaceError("the cursor is closed"), False),
        (ValueError("ours"), True),
        (KeyError("ours"), True),
    ],
)
def test_an_error_without_sqlstate_is_the_drivers_or_ours(error: Exception, is_work: bool) -> None:
    """A value that the driver refuses is the message's; a connection that is gone is not."""
    assert (Postgres().classify(error) is None) == is_work


@pytest.mark.parametrize("name", RESULT_CODES)
@pytest.mark.parametrize("extended", [0, 1 << 8, 5 << 8])
def test_sqlite_blames_a_message_for_its_data_alone(name: str, extended: int) -> None:
    """Constraint, wrong type, too big, too many parameters; the higher bits of a code only tell more."""
    error = sqlite3.DatabaseError("text")
    error.sqlite_errorcode = RESULT_CODES[name] | extended
    found = Sqlite().classify(error)
    assert found is Sqlite().classify(wrapped(error))
    assert (found is None) == (name in ("SQLITE_CONSTRAINT", "SQLITE_MISMATCH", "SQLITE_TOOBIG", "SQLITE_RANGE"))
    if name in ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR", "SQLITE_PERM", "SQLITE_AUTH"):
        assert found is Failure.REFUSED
    # A lock, a full disk, a file that is out of reach: they may pass without anything that an operator corrects in the database.
    passing = ("BUSY", "LOCKED", "FULL", "IOERR", "CANTOPEN", "READONLY", "PROTOCOL", "NOMEM", "INTERRUPT")
    assert (found is Failure.UNAVAILABLE) == (name.removeprefix("SQLITE_") in passing)


@pytest.mark.parametrize("extended", [0, 1 << 8, 2 << 8, 3 << 8])
def test_sqlite_waits_for_any_kind_of_lock(extended: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The higher bits of the code give the kind: another connection recovers the -wal, for example, after a crash."""
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY | extended

    def fail(*_: object) -> NoReturn:
        raise error

    waits: list[int] = []
    driver = SimpleNamespace(execute=lambda sql: waits.append(int(sql.rpartition(" ")[2])) if "timeout" in sql else None)
    connection: Any = SimpleNamespace(
        begin=fail, info={}, get_execution_options=dict, connection=SimpleNamespace(dbapi_connection=driver)
    )
    assert Sqlite().begin_nowait(connection) is None
    assert waits == [0, int(BUSY_SECONDS * 1000)]
    lock = SimpleNamespace(execute=fail, close=lambda: waits.clear())
    monkeypatch.setattr("sqlite3.connect", lambda *_, **options: lock)
    with pytest.raises(DatabaseConfigError, match="another process serves orders from this file"):
        FileLock(str(tmp_path / "lock"), "orders", 0.1)
    assert waits == []


@pytest.mark.parametrize(
    ("error", "is_work"),
    [
        (sqlite3.ProgrammingError("Error binding parameter 1: type 'object' is not supported"), True),
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), False),
        (sqlite3.InterfaceError("Error binding parameter 1 - probably unsupported type."), True),
        (sqlite3.OperationalError("could not decode to UTF-8"), False),
        (OverflowError("Python int too large to convert to SQLite INTEGER"), True),
    ],
)
def test_an_error_without_a_result_code_is_the_drivers_or_ours(error: Exception, is_work: bool) -> None:
    """As with PostgreSQL."""
    assert (Sqlite().classify(error) is None) == is_work


@pytest.mark.parametrize("dialect", [Sqlite(), Postgres()], ids=["sqlite", "postgresql"])
@pytest.mark.parametrize(
    ("error", "recovery"),
    [
        (exc.ResourceClosedError("This Connection is closed"), _Recovery.UNAVAILABLE),
        (exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back"), _Recovery.UNAVAILABLE),
        (exc.TimeoutError("QueuePool limit"), _Recovery.UNAVAILABLE),
        (exc.DisconnectionError("gone"), _Recovery.UNAVAILABLE),
        (exc.NoResultFound("ours"), _Recovery.RAISE),
        (exc.ArgumentError("ours"), _Recovery.RAISE),
        (RuntimeError("ours"), _Recovery.RAISE),
    ],
)
def test_sqlalchemys_own_errors_about_a_connection_are_the_databases(
    dialect: Postgres | Sqlite, error: Exception, recovery: _Recovery
) -> None:
    """All others are bugs of ours, and concern the work that met them."""
    assert _classify(error, dialect, is_disconnected=False, may_retry=False) is recovery
