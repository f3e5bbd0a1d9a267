"""Count with the projections in a file in memory."""

from __future__ import annotations

__all__ = ["Count", "asked", "comparable", "store"]

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
from app.analytics.events import SCHEMA, Incoming
from app.analytics.projections.declaration import load
from app.analytics.projections.statements import Statement
from app.analytics.projections.views import create_views
from app.analytics.query import Answer, answer, gathered
from app.messaging.event_registry import build_registry
from bus.contracts.registry import ContractRegistry
from tests.analytics.projections.outboxes import Outboxes
from tests.analytics.projections.story import Happened
from tests.postgres import PostgresServer

Count = Callable[[Sequence[Happened], str], list[tuple[Any, ...]]]
"""Takes events and the name of a projection, and returns its rows, sorted."""


@pytest.fixture(scope="session")
def contracts() -> ContractRegistry:
    """All events."""
    return build_registry(())


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
    taken = file.take(Incoming.of(pa.table(columns, SCHEMA)))
    assert not taken.unreadable


def asked(file: AnalyticsFile, statement: Statement | None) -> Answer:
    """Return the whole answer of *file*; an error is that of the projection."""
    assert statement is not None
    try:
        return gathered(answer(file.connection.cursor(), statement.sql, 1000))
    except QueryRefused as error:
        raise statement.error(str(error)) from None


def comparable(rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Return *rows* in one order, with values that do not depend on the database."""
    return sorted((tuple(map(_plain, row)) for row in rows), key=lambda row: tuple(map(str, row)))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return round(value, 6) if isinstance(value, float) else value


@pytest.fixture(scope="session")
def all_outboxes(postgres: PostgresServer) -> Iterator[Outboxes]:
    """The outboxes of all modules, with all projections, for the whole run."""
    with psycopg.connect(postgres.create_database(), autocommit=True) as connection:
        yield Outboxes(connection)


@pytest.fixture
def outboxes(all_outboxes: Outboxes) -> Outboxes:
    """The same outboxes, without events."""
    all_outboxes.clear()
    return all_outboxes


@pytest.fixture(params=["duckdb", "risingwave"])
def count(request: pytest.FixtureRequest) -> Count:
    """Count what has only the events of the test: the file, and the outboxes with the SQL for RisingWave."""
    if request.param == "risingwave":
        outboxes: Outboxes = request.getfixturevalue("outboxes")
        return lambda events, name: comparable(outboxes.count(events, name))
    file: AnalyticsFile = request.getfixturevalue("file")

    def count(events: Sequence[Happened], name: str) -> list[tuple[Any, ...]]:
        store(file, events)
        return comparable(file.connection.execute(f"SELECT * FROM {name}").fetchall())

    return count
