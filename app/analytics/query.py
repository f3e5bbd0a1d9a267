"""
Query the file in SQL, without a change to it.

A query is one statement, in a transaction that cannot write, on a connection that reaches no other file and no setting.
Its answer is a sequence of `Line`: a long answer needs little memory, and a socket can carry it line by line.
"""

from __future__ import annotations

__all__ = ["ROWS_AT_ONCE", "Answer", "Line", "answer", "gathered", "plain"]

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING, Any

from attrs import frozen

from app.analytics.errors import QueryRefused

if TYPE_CHECKING:
    import duckdb

ROWS_AT_ONCE = 1_000
"""Rows that are fetched at once."""

Line = dict[str, Any]
"""
A part of an answer, in JSON's types.

First comes one with the members ``columns`` and ``types``, then any number with ``rows``, then one with ``is_complete``, which is
False if there are more rows than were asked for. One with ``error`` ends the answer at any point.
"""


@frozen
class Answer:
    """A whole answer."""

    columns: Sequence[str]
    types: Sequence[str]
    rows: Sequence[Sequence[Any]]
    is_complete: bool


def answer(connection: duckdb.DuckDBPyConnection, sql: str, limit: int) -> Iterator[Line]:
    """Run *sql* on *connection*, which nothing else uses, and yield the lines of its answer with up to *limit* rows."""
    import duckdb

    try:
        _check(connection, sql)
        connection.execute("BEGIN TRANSACTION READ ONLY")
        described = connection.execute(sql).description or []
        yield {"columns": [str(column[0]) for column in described], "types": [str(column[1]) for column in described]}
        is_complete = True
        while is_complete and (rows := connection.fetchmany(ROWS_AT_ONCE)):
            is_complete = len(rows) <= limit
            yield {"rows": [[plain(value) for value in row] for row in rows[:limit]]}
            limit -= len(rows[:limit])
        yield {"is_complete": is_complete}
    except duckdb.Error as error:
        yield {"error": _explained(error)}
    except QueryRefused as error:
        yield {"error": str(error)}


def gathered(lines: Iterable[Line]) -> Answer:
    """
    Return the answer that *lines* are.

    Raises:
        QueryRefused: One of them is an error.
    """
    columns: Sequence[str] = ()
    types: Sequence[str] = ()
    blocks: list[Sequence[Sequence[Any]]] = []
    is_complete = False
    for line in lines:
        if "error" in line:
            raise QueryRefused(line["error"])
        columns, types = line.get("columns", columns), line.get("types", types)
        blocks.append(line.get("rows", ()))
        is_complete = line.get("is_complete", False)
    return Answer(columns, types, list(chain(*blocks)), is_complete)


def plain(value: Any) -> Any:
    """Return *value* in JSON's types: times as RFC 3339, whole decimals as integers, what is no number as null."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, date | time):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {str(name): plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    return value.hex() if isinstance(value, bytes) else str(value)


def _check(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    import duckdb

    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise QueryRefused(f"must be one statement, not {len(statements)}")
    if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        raise QueryRefused("only SELECT and EXPLAIN are answered; what is in the file comes from `analytics run` alone")


def _explained(error: Exception) -> str:
    import duckdb

    if isinstance(error, duckdb.InterruptException):
        return "the query was ended: it took too long, or nothing waited for its answer"
    if isinstance(error, duckdb.OutOfMemoryException):
        return "the query needs more memory than ANALYTICS_MEMORY, and more disk than it may take: limit what it sorts or joins, or set more"
    return str(error).strip()
