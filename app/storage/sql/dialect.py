"""
What differs between databases: how one is opened, how statements are written, and what its errors mean.

All other code writes its SQL once, with ``?`` for a value and ``{keys}`` for a list of values, and has a dialect adapt it.
"""

from __future__ import annotations

__all__ = ["CACHE_GENERATION", "Dialect", "ExclusiveAccess", "Failure", "Statement", "invalidate_cache"]

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, RootTransaction, Table
from sqlalchemy.exc import DBAPIError

CACHE_GENERATION = "cache generation"
"""
The key in a connection's ``info`` of an object that stays the same while only this connection changes the database and no
transaction is rolled back.

Data that was read or written during a generation is valid until it ends. Only for a database of this process alone.
"""


class Failure(Enum):
    """How a transaction recovers from an error that its work did not cause."""

    UNAVAILABLE = "unavailable"
    """The database is out of reach; try again later."""
    RETRY = "retry"
    """Run the whole transaction again at once."""
    REFUSED = "refused"
    """The database answers, and something is wrong with it that an operator has to correct."""


class Statement(Protocol):
    """A statement for any number of rows, prepared once; *prefix* are values that come before those of the rows."""

    def execute(self, connection: Connection, rows: Sequence[Sequence[Any]], prefix: tuple[Any, ...] = ()) -> None:
        """
        Execute it for *rows*; it returns none.

        It may wait for the next statement that returns rows, or for the commit, and then fail there.
        """

    def fetch(
        self, connection: Connection, rows: Sequence[Sequence[Any]], prefix: tuple[Any, ...] = ()
    ) -> Callable[[], list[Any]]:
        """
        Execute it for *rows*; return a function that returns all rows that the statement returns.

        Several statements that are executed before the first function is called cost one round trip to a server.
        """


class ExclusiveAccess(Protocol):
    """The exclusive right to serve modules from a database."""

    def renew(self) -> bool:
        """
        Return whether it is held; acquire it again if it was lost and no other process has it. Call it in a thread.

        Raises:
            Exception: The database is out of reach.
        """

    def close(self) -> None:
        """Give it up."""


class Dialect(Protocol):
    """One kind of database."""

    name: str
    for_update: str
    """A clause at the end of a select: it locks the rows until the transaction ends."""
    skip_locked: str
    """The same, but it skips rows that another transaction has locked."""
    oldest_snapshot_sql: str | None
    """A statement for the age in seconds of the oldest snapshot that a reader holds; None if the database does not show it."""
    histories_sql: str
    """
    A statement for the names of the histories in the database that this process may read, also of modules that it does not
    run. Their rows are numbered together; see `insert_numbered`.
    """
    is_shared: bool
    """True if other processes of this application may work on the same database."""

    @property
    def wal_path(self) -> str | None:
        """The file with the latest commits, which grows while a reader holds an old snapshot; None without such a file."""

    def engine(self, url: str) -> Engine:
        """
        Prepare an engine for *url*; no connection is opened yet.

        Its connections begin transactions for the writer, or, with the execution option ``reading``, for a reader.

        Raises:
            DatabaseConfigError: The URL is invalid, or its driver is not installed.
        """

    def acquire_exclusive(self, engine: Engine, name: str, seconds: float) -> ExclusiveAccess:
        """
        Acquire the right to serve *name* from the database of *engine*, until it is closed or the process ends.

        Waits up to *seconds* for another process to give it up.

        Raises:
            DatabaseConfigError: Another process has it.
        """

    def begin_nowait(self, connection: Connection) -> RootTransaction | None:
        """Begin a transaction on *connection*; return None if that would have to wait."""

    def classify(self, error: BaseException) -> Failure | None:
        """
        Return how to recover from *error*; None if the work caused it, or it is not the database's at all.

        The work has caused only errors that are about its data and its constraints (SQLSTATE classes 22 and 23), and those
        that the driver raises by itself because of a value. Every other error has its cause in the database.
        """

    def unfitness(self, connection: Connection) -> str:
        """Return why the database that answers cannot be used, in one line for the operator; empty if it can."""

    def explain(self, error: DBAPIError) -> str:
        """Return in a few words for the operator, without host or password, why the database cannot be used."""

    def is_conflict(self, error: BaseException) -> bool:
        """Return True if *error* means that a row exists already: inserted a moment ago, or permanently."""

    def is_disconnected(self, connection: Connection) -> bool:
        """Return True if *connection* has lost its server, which rolls back what was not committed."""

    @property
    def lost(self) -> str:
        """What has happened to the database's files under the process, for the operator; empty while all is well."""

    def verify_commit(self, connection: Connection) -> None:
        """
        Ensure that what *connection* has just committed is in the database.

        Raises:
            Exception: It is not, because the database's files were moved, deleted or replaced.
        """

    def abandon(self, connection: Connection) -> None:
        """Never close *connection*, whose files are lost."""

    def transaction_id(self, connection: Connection) -> Any:
        """
        Return the id for `was_committed` of the transaction that failed to commit on *connection*.

        None if it cannot have been committed: it has only read, or the server was not asked to commit it.
        """

    def was_committed(self, engine: Engine, tx_id: Any) -> bool | None:
        """Return whether the transaction *tx_id*, whose connection broke during the commit, was committed; None: unknown."""

    def probe(self, connection: Connection) -> None:
        """Write something that changes no data, to find out whether a write can be committed."""

    def has_written(self, connection: Connection) -> bool:
        """Return True if a transaction on *connection* has proved that the database can be written (reader: read)."""

    def try_lead(self, connection: Connection, name: str, is_eligible: bool) -> bool:
        """
        Take or keep the lead in *name*, or give it up if not *is_eligible*; return whether it is held.

        At most one of all processes on a database holds it. It ends with the connection.
        """

    def timestamp_sql(self, column: str) -> str:
        """Return an expression for the time in *column* in the form of `app.storage.state_rows.to_db_timestamp`."""

    def later_sql(self, column: str) -> str:
        """Return an expression for the time in *column*, plus a whole number of seconds: the placeholder in it."""

    def now_sql(self) -> str | None:
        """Return an expression for the time of the server's clock, in the form of `timestamp_sql`; None without a server."""

    def json_rows_sql(self, columns: Sequence[Any]) -> str:
        """Return an expression that aggregates all rows into one text: a JSON array of arrays with the values of *columns*."""

    def position_sql(self, column: str) -> str:
        """Return an expression for the position (from 1; 0 if absent) of a placeholder's text in the JSON text of *column*."""

    def to_driver_sql(self, sql: str) -> str:
        """Return *sql* with the placeholders that the driver expects."""

    def by_keys(self, sql: str) -> Statement:
        """Prepare *sql*; its ``{keys}`` follows a column and represents the values that the column may have."""

    def insert(self, table: Table, keys: Sequence[str], conflict: str = "") -> Statement:
        """Prepare an insert of rows into the columns *keys* of *table*; *conflict* is its ``ON CONFLICT`` clause."""

    def prepare_numbers(self, engine: Engine, tables: Sequence[str]) -> None:
        """Ensure that the next number of `insert_numbered` is greater than all in *tables*."""

    def writers_sql(self, tables: Sequence[str]) -> str | None:
        """
        Return a statement for the names of the transactions that are writing to *tables*, other processes' included.

        None if only one transaction writes at a time: then the number of a new row is greater than all that are committed.
        """

    def insert_numbered(self, table: Table, *, is_next: bool) -> Statement:
        """
        Prepare an insert of one row into *table*, without its first column, *number*, which is given here.

        With *is_next* it is greater than all numbers in the histories of the database; otherwise it is the one that this transaction has
        given last.
        """

    def replace(self, table: Table, keys: Sequence[str]) -> Statement:
        """
        Prepare a statement that inserts rows of the columns *keys*, the primary key first, or overwrites existing ones.

        Nothing but the primary key may be unique in *table*: a conflict on another column could delete a row.
        """


def invalidate_cache(connection: Connection) -> None:
    """Begin a new generation, because of a rollback or a write by another process."""
    connection.info[CACHE_GENERATION] = object()
