"""The engines that count: DuckDB, and PostgreSQL in place of RisingWave, with what is generated for RisingWave."""

from __future__ import annotations

__all__ = ["Count", "asked", "store"]

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from app.analytics.analytics_file import AnalyticsFile
from app.analytics.errors import QueryRefused
from app.analytics.event_tables import EventTable, event_tables
from app.analytics.events import SCHEMA
from app.analytics.projections import risingwave
from app.analytics.projections.declaration import load
from app.analytics.projections.statements import Statement
from app.analytics.projections.views import create_views
from app.analytics.query import Answer, answer, gathered
from app.messaging.event_registry import build_registry
from bus.contracts.registry import ContractRegistry
from tests.analytics.projections.story import Happened
from tests.postgres import PostgresServer

Count = Callable[[Sequence[Happened], str], list[tuple[Any, ...]]]
"""Takes events and the name of a projection, and returns its rows, sorted."""


@pytest.fixture(scope="session")
def contracts() -> ContractRegistry:
    """All events."""
    return build_registry(())


@pytest.fixture(scope="session")
def tables(contracts: ContractRegistry) -> Sequence[EventTable]:
    """The tables of all events."""
    return event_tables(contracts)


@pytest.fixture(scope="session")
def duckdb_file(contracts: ContractRegistry) -> Iterator[AnalyticsFile]:
    """A file in memory with all projections, for the whole run."""
    file = AnalyticsFile(None, contracts)
    create_views(file.connection, load())
    yield file
    file.close()


@pytest.fixture
def file(duckdb_file: AnalyticsFile) -> AnalyticsFile:
    """The same file, without events."""
    for table in duckdb_file.tables:
        duckdb_file.connection.execute(f"DELETE FROM {table.name}")
    return duckdb_file


@pytest.fixture(scope="session")
def risingwave_like(postgres: PostgresServer, tables: Sequence[EventTable]) -> Iterator[psycopg.Connection[Any]]:
    """A PostgreSQL database with what is generated for RisingWave, for the whole run; the source is a plain table."""
    columns = ", ".join(f'"{column}" {type}' for column, type in risingwave.SOURCE_COLUMNS.items())
    with psycopg.connect(postgres.create_database(), autocommit=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f'CREATE TABLE {risingwave.EVENTS} ({columns}, PRIMARY KEY ("id"))')
        for statement in (*risingwave.view_statements(tables), *risingwave.projection_statements(load(), tables)):
            connection.execute(statement)
        yield connection


def store(file: AnalyticsFile, events: Sequence[Happened]) -> None:
    """Take *events* into *file*."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for number, event in enumerate(events):
        row = {
            "event_id": event.id, "cause_id": event.id, "correlation_id": "c", "entity_key": event.data["order_id"],
            "module": event.subject.partition(".")[0], "subject": event.subject, "seq": number, "occurred_at": event.time,
            "data": json.dumps(event.data),
        }  # fmt: skip
        for name in columns:
            columns[name].append(row[name])
    taken = file.take(pa.table(columns, SCHEMA))
    assert not taken.unreadable


def asked(file: AnalyticsFile, statement: Statement | None) -> Answer:
    """Return the whole answer of *file*; an error is that of the projection."""
    assert statement is not None
    try:
        return gathered(answer(file.connection.cursor(), statement.sql, 1000))
    except QueryRefused as error:
        raise statement.error(str(error)) from None


def _sorted(rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    return sorted((tuple(map(_plain, row)) for row in rows), key=lambda row: tuple(map(str, row)))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return round(value, 6) if isinstance(value, float) else value


@pytest.fixture(params=["duckdb", "risingwave"])
def count(request: pytest.FixtureRequest) -> Count:
    """Count with each of the two dialects."""
    if request.param == "duckdb":
        return _in_duckdb(request.getfixturevalue("file"))
    return _in_postgres(request.getfixturevalue("risingwave_like"))


def _in_duckdb(file: AnalyticsFile) -> Count:
    def count(events: Sequence[Happened], name: str) -> list[tuple[Any, ...]]:
        store(file, events)
        return _sorted(file.connection.execute(f"SELECT * FROM {name}").fetchall())

    return count


def _in_postgres(connection: psycopg.Connection[Any]) -> Count:
    def count(events: Sequence[Happened], name: str) -> list[tuple[Any, ...]]:
        rows = [(each.id, each.subject, each.time, "k", "c", "c", False, json.dumps(each.data)) for each in events]
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute(f"TRUNCATE {risingwave.EVENTS}")
            cursor.executemany(f"INSERT INTO {risingwave.EVENTS} VALUES (%s, %s, %s, %s, %s, %s, %s, %s)", rows)
            for (view,) in cursor.execute("SELECT relname FROM pg_class WHERE relkind = 'm' ORDER BY oid").fetchall():
                cursor.execute(f"REFRESH MATERIALIZED VIEW {view}")
            return _sorted(cursor.execute(f"SELECT * FROM {name}").fetchall())

    return count
