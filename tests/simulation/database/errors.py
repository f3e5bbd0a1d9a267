"""The errors of a simulated database server, as its driver raises them."""

from __future__ import annotations

__all__ = ["Deadlock", "Disconnected", "LockTimeout", "Row", "SerializationFailure", "TransactionAborted"]

import sqlite3

Row = tuple[str, object]
"""A table and the value of its primary key."""


class Disconnected(sqlite3.OperationalError):
    """The connection is broken, or there is no server."""


class LockTimeout(sqlite3.OperationalError):
    """A row was locked by another transaction for too long."""


class SerializationFailure(sqlite3.OperationalError):
    """The transaction must be repeated."""


class Deadlock(sqlite3.OperationalError):
    """Two transactions wait for each other; this one must be repeated."""


class TransactionAborted(sqlite3.InternalError):
    """An earlier statement of the transaction has failed."""
