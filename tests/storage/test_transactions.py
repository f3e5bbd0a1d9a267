"""Every error of a transaction has one recovery: run it again, report the database as unavailable, or raise the error."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import exc

from app.storage.sql.dialect import Dialect
from app.storage.sql.postgres import Postgres
from app.storage.sql.sqlite import Sqlite
from app.storage.sql.transactions import TransactionSteps, _classify, _Recovery, drive

RETRY, UNAVAILABLE, RAISE = _Recovery.RETRY, _Recovery.UNAVAILABLE, _Recovery.RAISE
SQLITE, POSTGRES = Sqlite(), Postgres()


def wrapped(error: Exception) -> exc.DBAPIError:
    """Return *error* as SQLAlchemy raises it."""
    module = sqlite3 if isinstance(error, sqlite3.Error) else psycopg
    found = exc.DBAPIError.instance("SELECT 1", (), error, module.Error)
    assert isinstance(found, exc.DBAPIError)
    return found


@pytest.mark.parametrize(
    ("dialect", "error", "with_attempts_left", "after_the_last"),
    [
        (SQLITE, sqlite3.OperationalError("database is locked"), UNAVAILABLE, UNAVAILABLE),
        (SQLITE, wrapped(sqlite3.OperationalError("database or disk is full")), UNAVAILABLE, UNAVAILABLE),
        (SQLITE, wrapped(sqlite3.IntegrityError("UNIQUE constraint failed")), RAISE, RAISE),
        (SQLITE, ValueError("the work's own"), RAISE, RAISE),
        (POSTGRES, wrapped(errors.SerializationFailure()), RETRY, UNAVAILABLE),
        (POSTGRES, wrapped(errors.DeadlockDetected()), RETRY, UNAVAILABLE),
        (POSTGRES, errors.UniqueViolation(), RETRY, RAISE),
        (POSTGRES, wrapped(errors.UniqueViolation()), RETRY, RAISE),
        (POSTGRES, errors.CheckViolation(), RAISE, RAISE),
        (POSTGRES, wrapped(psycopg.OperationalError("connection refused")), UNAVAILABLE, UNAVAILABLE),
        (POSTGRES, errors.LockNotAvailable(), UNAVAILABLE, UNAVAILABLE),
        (POSTGRES, wrapped(errors.ReadOnlySqlTransaction()), UNAVAILABLE, UNAVAILABLE),
        (POSTGRES, ValueError("the work's own"), RAISE, RAISE),
    ],
    ids=lambda value: type(getattr(value, "orig", value)).__name__ if isinstance(value, Exception) else getattr(value, "name", None),
)
def test_an_error_is_sorted_by_what_can_be_done_about_it(
    dialect: Dialect, error: Exception, with_attempts_left: _Recovery, after_the_last: _Recovery
) -> None:
    """A conflict is retried; one that is left after the last attempt is the fault of the work."""
    assert _classify(error, dialect, is_disconnected=False, may_retry=True) is with_attempts_left
    assert _classify(error, dialect, is_disconnected=False, may_retry=False) is after_the_last


@pytest.mark.parametrize("error", [psycopg.OperationalError("cut"), ValueError("raised because the connection broke")])
def test_a_broken_connection_is_retried_whatever_the_error_says(error: Exception) -> None:
    """Nothing was committed on it; if it breaks every time, the database is unavailable."""
    assert _classify(error, POSTGRES, is_disconnected=True, may_retry=True) is RETRY
    assert _classify(error, POSTGRES, is_disconnected=True, may_retry=False) is UNAVAILABLE


def test_a_driver_gives_results_and_errors_back_to_the_steps() -> None:
    """The generator sees the outcome of each call where it yields the call."""

    def steps() -> TransactionSteps[int]:
        number: int = yield lambda: 1
        try:
            yield lambda: 1 // 0
        except ZeroDivisionError:
            number += yield lambda: 2
        return number

    assert drive(steps()) == 3
