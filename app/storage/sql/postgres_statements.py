"""
The statements of the PostgreSQL dialect: each takes any number of rows, as one array for each column.

The text of an array is written here for a whole column at once. psycopg would write it element by element, which took a
fifth of the processor time of an order.
"""

from __future__ import annotations

__all__ = [
    "HISTORIES_SQL",
    "PIPELINE",
    "ArrayStatement",
    "array_encoder",
    "insert_numbered",
    "pipeline_of",
    "prepare_numbers",
    "text_array",
    "writers_sql",
]

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from sqlalchemy import Boolean, Connection, Engine, Integer, LargeBinary, Table

from app.storage.sql.postgres_pipeline import Pipeline

ArrayEncoder = Callable[[Sequence[Any]], str]
"""Writes the values of a column, None included, as the text of an array."""

PIPELINE = "pipeline"
"""The key in a connection's ``info`` of its `Pipeline`."""

_NUMBERS = "history_number"
"""The sequence that numbers the histories of all modules of a database."""

HISTORIES_SQL = (
    "SELECT relname FROM pg_class WHERE relkind = 'r' AND right(relname, 8) = '_history' AND pg_table_is_visible(oid)"
    " AND to_regclass(relname || '_by_time') IS NOT NULL AND has_table_privilege(oid, 'SELECT') ORDER BY relname"
)
"""The tables that have such a name and such an index; a role of one module may read only its own."""

_NUL = "\0"


def pipeline_of(connection: Connection) -> Pipeline:
    """Return the pipeline of *connection*."""
    pipeline: Pipeline = connection.info[PIPELINE]
    return pipeline


class ArrayStatement:
    """A statement that takes its rows as one array for each column; *encoders* write the arrays."""

    def __init__(self, sql: str, encoders: Sequence[ArrayEncoder] = ()) -> None:
        """Prepare *sql*, in which ``?`` represents each value of the prefix and then for each array."""
        self._sql = _numbered(sql)
        self._encoders = encoders

    def execute(self, connection: Connection, rows: Sequence[Sequence[Any]], prefix: tuple[str, ...] = ()) -> None:
        """Execute it for all *rows*; see `app.storage.sql.dialect.Statement`."""
        if rows:
            _pipeline_in_transaction(connection).queue(self._sql, self._parameters(rows, prefix))

    def fetch(
        self, connection: Connection, rows: Sequence[Sequence[Any]], prefix: tuple[str, ...] = ()
    ) -> Callable[[], list[Any]]:
        """Execute it for all *rows* and return its own; see `app.storage.sql.dialect.Statement`."""
        if not rows:
            return list
        pipeline = _pipeline_in_transaction(connection)
        statement = pipeline.queue(self._sql, self._parameters(rows, prefix))
        return lambda: pipeline.rows(statement)

    def _parameters(self, rows: Sequence[Sequence[Any]], prefix: tuple[str, ...]) -> list[bytes]:
        columns = zip(*rows, strict=True)
        arrays = [encode(column) for encode, column in zip(self._encoders, columns, strict=True)]
        return [text.encode() for text in (*prefix, *arrays)]


def _pipeline_in_transaction(connection: Connection) -> Pipeline:
    """Return the pipeline of *connection*; begin a transaction if there is none, as SQLAlchemy does at its statements."""
    if not connection.in_transaction():
        connection.begin()
    return pipeline_of(connection)


def array_encoder(column_type: Any) -> ArrayEncoder:
    """Return what writes the values of a column of *column_type*."""
    if isinstance(column_type, Integer | Boolean):
        return _plain_array
    return _binary_array if isinstance(column_type, LargeBinary) else text_array


def text_array(values: Sequence[str | None]) -> str:
    """
    Return *values* as the text of an array.

    Raises:
        psycopg.DataError: A value contains a NUL, which PostgreSQL cannot store.
    """
    if None in values:
        return "{" + ",".join(["NULL" if value is None else text_array((value,))[1:-1] for value in values]) + "}"
    # A NUL separates the values until the characters that are special within quotes are escaped.
    joined = _NUL.join(values)  # type: ignore[arg-type]
    if joined.count(_NUL) >= len(values):
        raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return '{"' + joined.replace("\\", r"\\").replace('"', r"\"").replace(_NUL, '","') + '"}'


def insert_numbered(table: Table, *, is_next: bool) -> ArrayStatement:
    """Prepare an insert of a time and bytes; the number comes from the sequence that all tables of a database share."""
    number = f"{'nextval' if is_next else 'currval'}('{_NUMBERS}')"
    sql = f"INSERT INTO {table.name} SELECT {number}, given.* FROM unnest(?::timestamptz[], ?::bytea[]) AS given"
    return ArrayStatement(sql, [text_array, _binary_array])


def prepare_numbers(engine: Engine, tables: Sequence[str]) -> None:
    """
    Create the sequence unless it exists, and put it beyond the numbers in *tables*.

    It is neither there nor beyond them if the tables were moved here from another database.
    """
    union = " UNION ALL ".join(f"SELECT max(number) AS last FROM {name}" for name in tables)
    with engine.begin() as connection:
        last = connection.exec_driver_sql(f"SELECT coalesce(max(last), 0) FROM ({union}) AS found").scalar_one()
        if connection.exec_driver_sql(f"SELECT to_regclass('{_NUMBERS}')").scalar() is None:
            connection.exec_driver_sql(f"CREATE SEQUENCE IF NOT EXISTS {_NUMBERS}")
        if connection.exec_driver_sql(f"SELECT last_value < %s FROM {_NUMBERS}", (last,)).scalar_one():
            connection.exec_driver_sql(f"SELECT setval('{_NUMBERS}', %s)", (last,))


def writers_sql(tables: Sequence[str]) -> str:
    """
    Return a statement for the transactions that are writing to *tables*.

    An insert locks its table, until the end of its transaction, before it takes a number from the sequence.
    """
    oids = ", ".join(f"'{name}'::regclass" for name in tables)
    mine = "(SELECT oid FROM pg_database WHERE datname = current_database())"
    return (
        "SELECT DISTINCT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'"
        f" AND granted AND database = {mine} AND relation IN ({oids})"
    )


def _plain_array(values: Sequence[int | None]) -> str:
    """Write numbers or booleans."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def _binary_array(values: Sequence[bytes | None]) -> str:
    """Write bytes in hexadecimal."""
    return "{" + ",".join(["NULL" if value is None else rf'"\\x{value.hex()}"' for value in values]) + "}"


def _numbered(sql: str) -> str:
    """Return *sql* with ``$1``, ``$2`` and so on in place of each ``?``."""
    first, *others = sql.split("?")
    return first + "".join(f"${number}{text}" for number, text in enumerate(others, 1))
