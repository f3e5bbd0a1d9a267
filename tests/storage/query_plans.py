"""Record every statement that a process sends to its database, and find those whose plan visits a whole table."""

from __future__ import annotations

__all__ = ["PlannedScan", "StatementLog"]

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import psycopg
from attrs import frozen
from sqlalchemy import Pool, event

from app.storage.sql.postgres_pipeline import Pending, Pipeline

GROWING = re.compile(r"\b(orders|inventory|payments)_(?:archive|history|inbox|order|outbox|payment|product|reservation)\b")
"""Tables that grow with the orders, or with the products. Audit and dead letters grow with what people do and what fails."""

_PLANNED = ("SELECT", "UPDATE", "DELETE", "INSERT")
_CONDITIONS = ("Index Cond", "Recheck Cond")
_WHOLE_INPUT = ("Sort", "Aggregate", "HashAggregate", "Hash", "Incremental Sort")
_VISITS = ("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Index Scan")


@frozen
class PlannedScan:
    """A *statement* that visits every row of a table, or every entry of an index, and the line of its *plan*."""

    statement: str
    plan: str


class StatementLog:
    """The distinct statements of one process, with the values of their last execution."""

    def __init__(self) -> None:
        self._sqlite: dict[str, str] = {}
        self._postgres: dict[str, tuple[Any, Any, Any]] = {}
        """Text → values, their types and formats, as libpq takes them."""

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what is executed on connections that are opened within this block."""

        def attach(connection: Any, record: Any) -> None:
            if isinstance(connection, sqlite3.Connection):
                connection.set_trace_callback(self._on_sqlite)

        queue = Pipeline.queue

        def queued(pipeline: Pipeline, sql: str, parameters: Sequence[bytes | None] = ()) -> Pending:
            self._postgres[sql] = parameters, None, None
            return queue(pipeline, sql, parameters)

        execute = psycopg.Cursor.execute

        def executed(cursor: Any, query: Any, params: Any = None, **more: Any) -> Any:
            done = execute(cursor, query, params, **more)
            sent = cursor._query
            if sent is not None:
                self._postgres[sent.query.decode()] = sent.params or (), sent.types, sent.formats
            return done

        event.listen(Pool, "connect", attach)
        try:
            with patch.object(Pipeline, "queue", queued), patch.object(psycopg.Cursor, "execute", executed):
                yield
        finally:
            event.remove(Pool, "connect", attach)

    def _on_sqlite(self, sql: str) -> None:
        # The trace has the values in the text: two statements that differ in them only have one plan.
        self._sqlite[re.sub(r"'[^']*'|x'[0-9a-f]*'|\b\d+\b", "?", sql)] = sql

    def tables(self) -> set[str]:
        """Return the tables that grow and that a statement names."""
        return {match[0] for sql in (*self._sqlite, *self._postgres) for match in GROWING.finditer(sql)}

    def scans_on_sqlite(self, connection: sqlite3.Connection) -> list[PlannedScan]:
        """Return the scans of the recorded statements on the database of *connection*."""
        found = []
        for sql in self._sqlite.values():
            if sql.startswith(_PLANNED) and GROWING.search(sql):
                lines = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
                found += [PlannedScan(sql, line) for line in lines if _is_scan(line, sql, lines)]
        return found

    def scans_on_postgres(self, connection: psycopg.Connection[Any]) -> list[PlannedScan]:
        """Return the scans of the recorded statements on the database of *connection*, with the settings of the program."""
        found = []
        for sql, (values, types, formats) in self._postgres.items():
            if sql.startswith(_PLANNED) and GROWING.search(sql):
                explain = b"EXPLAIN (FORMAT JSON) " + sql.encode()
                result = connection.pgconn.exec_params(explain, list(values), types, formats)
                text = result.get_value(0, 0)
                assert text is not None, (sql, result.error_message)
                (root,) = json.loads(text)
                found += [PlannedScan(sql, line) for line in _unbounded(root["Plan"], is_limited=False)]
        return found


def _is_scan(line: str, sql: str, plan: Sequence[str]) -> bool:
    """
    Return whether *line* of a plan of SQLite visits all rows.

    A walk in the order of an index does not if a LIMIT ends it and it skips no row; ``IS NOT NULL`` is what a partial index has.
    """
    match = re.match(r"SCAN (\w+)", line)
    if match is None or not GROWING.fullmatch(match[1]):
        return False
    present = r'(?: WHERE "\w+" IS NOT NULL)?'
    order = r'ORDER BY (?:\w+\.)?"?\w+"?(?: ASC| DESC)?\s+LIMIT'
    is_ordered_walk = re.search(rf"FROM {match[1]}{present} {order}", sql) is not None
    return not is_ordered_walk or any("TEMP B-TREE FOR ORDER BY" in each for each in plan)


def _unbounded(node: dict[str, Any], *, is_limited: bool) -> Iterator[str]:
    """
    Yield the nodes at and below *node* of a plan of PostgreSQL that visit a whole table or index.

    *is_limited* if a LIMIT above ends the visit early; it does not while a filter skips rows.
    """
    kind = node["Node Type"]
    is_limited = kind == "Limit" or (is_limited and kind not in _WHOLE_INPUT)
    name = node.get("Relation Name") or node.get("Index Name", "")
    is_visit = kind in _VISITS and GROWING.search(name) is not None
    is_bounded = any(each in node for each in _CONDITIONS) or (is_limited and "Filter" not in node)
    if is_visit and not is_bounded:
        yield f"{kind} of {name}, filter {node.get('Filter')}"
    for child in node.get("Plans", ()):
        yield from _unbounded(child, is_limited=is_limited)
