"""Count with the SQL for RisingWave in PostgreSQL, whose SQL it is, too: over real outbox tables."""

from __future__ import annotations

__all__ = ["Outboxes", "views_of"]

import json
from collections.abc import Sequence
from typing import Any

import psycopg
from sqlalchemy import MetaData
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from app.analytics.event_tables import event_tables
from app.analytics.projections.declaration import load
from app.analytics.projections.risingwave.script import script
from app.messaging.event_registry import build_registry
from app.storage.tables import message_tables
from modules.registry import MODULES
from tests.analytics.projections.story import Happened

_INSERT = """
INSERT INTO {}_outbox (id, event_id, subject, key, body, correlation_id, causation_id, traceparent, occurred_at, due_at)
VALUES (%s, %s, %s, %s, %s, 'c', 'c', '', %s, 'epoch')
"""


def views_of() -> str:
    """Return what the command prints for events and projections, with views that need no refresh."""
    parts = script(event_tables(build_registry(())), load()).parts
    text = parts["sources"].partition("CREATE TABLE")[2].partition(";")[0]
    views = (parts["events"] + parts["projections"]).replace("MATERIALIZED VIEW IF NOT EXISTS", "VIEW")
    return f"CREATE TABLE {text};\n{views}"


class Outboxes:
    """The outboxes of all modules in an empty database, and the views over them."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self.connection = connection
        dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
        for module in MODULES:
            _, outbox, _ = message_tables(module, MetaData())
            self.connection.execute(str(CreateTable(outbox).compile(dialect=dialect)).encode())
        self.connection.execute(views_of().encode())

    def clear(self) -> None:
        """Delete all events."""
        for table in (*(f"{module}_outbox" for module in MODULES), "archived_events"):
            self.connection.execute(f"DELETE FROM {table}".encode())

    def insert(self, event: Happened, *, id: str | None = None, subject: str | None = None) -> None:
        """Insert *event* as its module publishes it."""
        row = id or event.id, event.id, subject or event.subject, event.data["order_id"], json.dumps(event.data).encode(), event.time
        self.connection.execute(_INSERT.format(event.subject.partition(".")[0]).encode(), row)

    def count(self, events: Sequence[Happened], name: str) -> list[tuple[Any, ...]]:
        """Insert *events*, and return the rows of the projection *name*."""
        for event in events:
            self.insert(event)
        return self.rows(name)

    def rows(self, name: str) -> list[tuple[Any, ...]]:
        """Return the rows of the view *name*."""
        return self.connection.execute(f"SELECT * FROM {name}".encode()).fetchall()
