"""Find out whether a PostgreSQL database can be used: its encoding, and whether a connection keeps its session."""

from __future__ import annotations

__all__ = ["unfitness"]

from contextlib import ExitStack
from typing import Any

import psycopg
from sqlalchemy import Connection

_CONNECTIONS = 3


def unfitness(connection: Connection) -> str:
    """
    Return why the database behind *connection* cannot be used, in one line for the operator; empty if it can.

    A connection pooler makes up the number of the session in its greeting, so it is known that there is one. It gives a
    connection another session for each transaction if further connections, each in a transaction, get the session that
    *connection* has used and not closed.
    """
    driver = _driver(connection)
    encoding = driver.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        return f"its encoding is {encoding}, which cannot store every name; create a database with ENCODING 'UTF8'"
    session = _session(driver)
    driver.execute("ROLLBACK")
    if session == driver.info.backend_pid:
        return ""
    with ExitStack() as others:
        for _ in range(_CONNECTIONS):
            if _session(_driver(others.enter_context(connection.engine.connect()))) == session:
                return (
                    "a connection pooler in transaction mode is in between, and locks and prepared statements need a session;"
                    " use its session mode, or connect to PostgreSQL directly"
                )
    return ""


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    # The driver itself prepares no statement, and each would fail in a session that has one of this name already.
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    return driver


def _session(driver: psycopg.Connection[Any]) -> int:
    """Begin a transaction, and return the number of the session that it has."""
    driver.execute("BEGIN")
    found = driver.execute("SELECT pg_backend_pid()").fetchone()
    assert found is not None
    number: int = found[0]
    return number
