"""
What differs from one database to the next: how it is opened, how statements are said, and what its errors mean.

The rest of the house writes its SQL once, with ``?`` for a value and ``{keys}`` for a list of them, and asks here.
"""

from __future__ import annotations

__all__ = ["TX_ID", "Dialect", "ExclusiveAccess", "Failure", "Statement", "cache_generation", "invalidate_cache"]

from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, RootTransaction, Table
from sqlalchemy.exc import DBAPIError

TX_ID = "transaction"
"""Under this name, in a connection's ``info``, stands what `Dialect.was_committed` asks about."""


_EPOCH = "epoch"


class Failure(Enum):
    """What is to be done about an error: come back later, or do the whole transaction again at once."""

    UNAVAILABLE = "away"
    RETRY = "again"


class Statement(Protocol):
    """One statement over any number of rows, prepared once."""

    def run(self, connection: Connection, rows: Sequence[Sequence[Any]], before: tuple[Any, ...] = ()) -> list[Any]:
        """Run it for *rows*; *before* are values that come first. Return all rows that it returns."""


class ExclusiveAccess(Protocol):
    """A module of a database that is ours alone."""

    def close(self) -> None:
        """Give it up."""


class Dialect(Protocol):
    """One kind of database."""

    name: str
    locking: str
    """Ends a query that selects rows to be changed: nobody else changes them until the transaction ends."""
    skip_locked: str
    """Ends a query that selects rows to be changed by whoever comes first: what another has in hand is left to him."""
    is_shared: bool
    """True where other processes like this one may work on the same database."""

    def engine(self, url: str) -> Engine:
        """
        Prepare an engine for *url*; nothing is opened yet. Its connections begin transactions as the writer needs them,
        or, with the execution option ``reading``, as a reader does.

        Raises:
            Unusable: There is no driver for it, or nobody can read the address.
        """

    def acquire_exclusive(self, engine: Engine, name: str, seconds: float) -> ExclusiveAccess | None:
        """
        Claim the module *name* in the database behind *engine*, until that is closed or the process ends.

        Who has claimed it is waited for, *seconds* at most. None where two processes may serve one module: there `lead`
        says who does what.

        Raises:
            Unusable: Another process has claimed it.
        """

    def begin_at_once(self, connection: Connection) -> RootTransaction | None:
        """Begin a transaction on *connection*, or return None where that means to wait."""

    def classify(self, error: BaseException) -> Failure | None:
        """Say what to do about *error*; None where it is the work's own fault, or not the database's at all."""

    def explain(self, error: DBAPIError) -> str:
        """Say in a few words, for the operator and without host or password, why the database cannot be used."""

    def is_conflict(self, error: BaseException) -> bool:
        """Tell whether *error* says that a row is there already: it was written a moment ago, or will always be there."""

    def is_disconnected(self, connection: Connection) -> bool:
        """Tell whether *connection* has lost its server; what it had not committed is undone there."""

    def was_committed(self, engine: Engine, mark: Any) -> bool | None:
        """Say what became of the transaction *mark*, whose connection was cut while it committed; None: nobody knows."""

    def probe(self, connection: Connection) -> None:
        """Write something that changes nothing: whether that can be committed is the point."""

    def has_written(self, connection: Connection) -> bool:
        """Tell whether a transaction on *connection* has proved that the database can be written, or read by a reader."""

    def try_lead(self, connection: Connection, name: str, is_fit: bool) -> bool:
        """
        Take, keep or (no longer *is_fit*) give up the lead in *name*; return whether it is ours.

        Of all processes on a database one has it at a time. It goes with the connection.
        """

    def timestamp_sql(self, column: str) -> str:
        """Return what selects the moment in *column* as `app.storage.state_rows.to_db_timestamp` writes it."""

    def json_rows(self, columns: Sequence[Any]) -> str:
        """Return what selects all rows, of *columns* each, as one text: a JSON array of arrays."""

    def text(self, sql: str) -> str:
        """Return *sql* as the driver wants it."""

    def by_keys(self, sql: str) -> Statement:
        """Return the statement *sql*, whose ``{keys}`` follows a column and stands for the values that it may have."""

    def insert(self, table: Table, names: Sequence[str], conflict: str = "") -> Statement:
        """Return the statement that inserts rows of the columns *names*; *conflict* says what if they are there."""

    def replace(self, table: Table, names: Sequence[str]) -> Statement:
        """
        Return the statement that writes whole rows of the columns *names*, the key first, over those that are there.

        Nothing but the key may be unique in *table*: a row that is in the way of another for that might go.
        """


def cache_generation(connection: Connection) -> object:
    """
    Return an object that stays the same for as long as *connection* alone changes the database, and undoes nothing.

    What was written during an epoch, or read, is true until it ends. Only for a database that is ours alone.
    """
    return connection.info.setdefault(_EPOCH, object())


def invalidate_cache(connection: Connection) -> None:
    """Say that something was undone, or that somebody else has written."""
    connection.info.pop(_EPOCH, None)


