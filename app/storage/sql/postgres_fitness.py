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
    (encoding,) = connection.exec_driver_sql("SHOW server_encoding").one()
    if encoding != "UTF8":
        return f"its encoding is {encoding}, which cannot store every name; create a database with ENCODING 'UTF8'"
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    session = _session(connection)
    connection.rollback()
    if session == driver.info.backend_pid:
        return ""
    with ExitStack() as others:
        for _ in range(_CONNECTIONS):
            if _session(others.enter_context(connection.engine.connect())) == session:
                return (
                    "a connection pooler in transaction mode is in between, and locks and prepared statements need a session;"
                    " use its session mode, or connect to PostgreSQL directly"
                )
    return ""


def _session(connection: Connection) -> int:
    number: int = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    return number
