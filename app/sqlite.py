"""
SQLite: one file, one process, no server.

Rows go in many to a statement, and a statement has one of a few sizes, so that each text is compiled once and the
database's own statement cache knows it from then on; what is missing to the next size is filled up with the last row,
which every statement here takes twice as well as once.
"""

from __future__ import annotations

__all__ = ["SIZES", "Sqlite"]

import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from app.dialect import Statement, Trouble, Unusable

BUSY_SECONDS = 2.0
"""How long we wait for somebody else's lock before we say that the database is out of reach."""

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Rows of one statement; SQLite takes 32,766 values in one."""

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA cache_size = -16384",
    "PRAGMA wal_autocheckpoint = 4000",
    "PRAGMA journal_size_limit = 67108864",
)


class Padded:
    """
    A statement that exists in a few sizes.

    *text* says it for a given number of rows. It must not mind a row that comes twice.
    """

    def __init__(self, text: Callable[[int], str]) -> None:
        self._texts = {size: text(size) for size in SIZES}

    def run(self, connection: Connection, rows: Sequence[Sequence[Any]], before: tuple[Any, ...] = ()) -> list[Any]:
        """Run it for *rows*, a few times if need be; see `app.dialect.Statement`."""
        found: list[Any] = []
        # Straight to the driver: these texts and values need nothing of what SQLAlchemy does for a statement.
        cursor = connection.connection.cursor()
        for part in _filled(rows):
            cursor.execute(self._texts[len(part)], before + tuple(chain.from_iterable(part)))
            if cursor.description is not None:
                found += cursor.fetchall()
        return found


def _filled(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Cut *rows* into parts, each filled up to one of `SIZES` with its last row."""
    most = SIZES[-1]
    for start in range(0, len(rows), most):
        part = rows[start : start + most]
        size = SIZES[bisect_left(SIZES, len(part))]
        yield part if size == len(part) else [*part, *[part[-1]] * (size - len(part))]


class Sqlite:
    """See `app.dialect.Dialect`."""

    name = "sqlite"
    # The transaction has the whole database to itself from its beginning.
    locking = ""
    skip_locked = ""
    is_shared = False

    def engine(self, url: str) -> Engine:
        """Prepare an engine, and the folder of its file."""
        parsed = make_url(url)
        assert parsed.database is not None
        path = Path(parsed.database)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unusable(f"the database's folder cannot be made: {error.strerror}") from None
        engine = create_engine(
            parsed,
            connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False, "cached_statements": 512},
            pool_size=4,
            # A statement of ours is compiled once and kept by us; SQLAlchemy's cache serves the few others.
            query_cache_size=200,
        )

        @event.listens_for(engine, "connect")
        def opened(connection: sqlite3.Connection, record: Any) -> None:
            connection.isolation_level = None  # BEGIN is ours to say
            for pragma in _PRAGMAS:
                connection.execute(pragma)

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:
            # A deferred transaction that turns into a writing one fails with BUSY_SNAPSHOT, which no time-out cures.
            is_reading = connection.get_execution_options().get("reading", False)
            connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")

        return engine

    def trouble(self, error: BaseException) -> Trouble | None:
        """Locked, full, read-only, unreadable: all of it may pass."""
        return Trouble.AWAY if isinstance(error, OperationalError | sqlite3.OperationalError) else None

    def explain(self, error: DBAPIError) -> str:
        """Its own words name no path."""
        return str(error.orig)

    def is_conflict(self, error: BaseException) -> bool:
        """Nobody else writes meanwhile."""
        return False

    def is_cut(self, connection: Connection) -> bool:
        """There is nothing that could be cut."""
        return False

    def was_committed(self, engine: Engine, mark: Any) -> bool | None:
        """A commit that raises is none."""
        return False

    def lead(self, connection: Connection, name: str, is_fit: bool) -> bool:
        """There is nobody else."""
        return True

    def moment(self, column: str) -> str:
        """It is kept as it is written."""
        return column

    def json_rows(self, columns: Sequence[Any]) -> str:
        """JSON is kept as text here; the others become what they are."""
        shown = (f"json({_quoted(c.name)})" if isinstance(c.type, JSON) else _quoted(c.name) for c in columns)
        return f"json_group_array(json_array({', '.join(shown)}))"

    def text(self, sql: str) -> str:
        """It wants it as it is."""
        return sql

    def by_keys(self, sql: str) -> Statement:
        """As many marks as keys."""
        return Padded(lambda size: sql.format(keys=f"IN ({', '.join('?' * size)})"))

    def insert(self, table: Table, names: Sequence[str], conflict: str = "") -> Statement:
        """As many rows of marks as rows."""
        columns = ", ".join(_quoted(name) for name in names)
        row = f"({', '.join('?' * len(names))})"
        # Rows come twice where a statement is filled up: without a word about conflicts, the copy is passed over.
        tail = conflict or "ON CONFLICT DO NOTHING"
        return Padded(lambda size: f"INSERT INTO {table.name} ({columns}) VALUES {', '.join([row] * size)} {tail}")


def _quoted(name: str) -> str:
    return f'"{name}"'
