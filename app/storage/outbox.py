"""
The tables that every module has beside its own: what it has heard, what it has said, what was given up.

They belong to the module, stand in its database and carry its name.
"""

from __future__ import annotations

__all__ = ["Parcel", "tables_of"]

from typing import NamedTuple

from sqlalchemy import Column, DateTime, Index, Integer, LargeBinary, MetaData, SmallInteger, String, Table, Text

from modules.tables import key_type


class Parcel(NamedTuple):
    """
    A row of the outbox: an event on its way out. Its members are the table's columns, in their order.

    *id* is the broker's, *event_id* the event's own; they differ when a dead letter is replayed, and for all but one of
    the versions in which an event is said. *occurred_at* and *due_at* are texts of one length: they compare as the moments do.
    """

    id: str
    event_id: str
    subject: str
    key: str
    body: bytes
    name: str | None
    correlation_id: str
    causation_id: str
    traceparent: str
    occurred_at: str
    due_at: str
    versions: str | None = None
    """Where the event is said in several: all of them, as the header has it. Each is a parcel of its own."""


def tables_of(module: str, metadata: MetaData) -> tuple[Table, Table, Table]:
    """Return *module*'s inbox, outbox and dead letters."""
    inbox = Table(
        f"{module}_inbox",
        metadata,
        Column("id", key_type(255), primary_key=True),
        Column("heard_at", DateTime(timezone=True), nullable=False),
        # 1 where the id does not begin with a time: what is old enough to go is a range of the key for all the others.
        Column("untimed", SmallInteger, nullable=False, server_default="1"),
        # For what came with an idempotency key: whose body it was, and what we answered.
        Column("fingerprint", String(64)),
        Column("answer", Text),
        sqlite_with_rowid=False,
    )
    untimed = inbox.c.untimed == 1
    Index(f"{module}_inbox_by_age", inbox.c.heard_at, sqlite_where=untimed, postgresql_where=untimed)
    outbox = Table(
        f"{module}_outbox",
        metadata,
        Column("id", key_type(255), primary_key=True),
        Column("event_id", String(255), nullable=False),
        Column("subject", String(255), nullable=False),
        Column("key", String(64), nullable=False),
        Column("body", LargeBinary, nullable=False),
        # A name makes it possible to withdraw what is not due yet.
        Column("name", String(255)),
        Column("correlation_id", String(128), nullable=False),
        Column("causation_id", String(255), nullable=False),
        Column("traceparent", String(55), nullable=False),
        Column("occurred_at", DateTime(timezone=True), nullable=False),
        Column("due_at", DateTime(timezone=True), nullable=False),
        Column("sent_at", DateTime(timezone=True)),
        Column("versions", String(64)),
        # With SQLite's row ids, other than the rest: its rows are long, and most are written once and never read.
    )
    unsent, named = outbox.c.sent_at.is_(None), outbox.c.name.isnot(None)
    Index(f"{module}_outbox_unsent", outbox.c.due_at, sqlite_where=unsent, postgresql_where=unsent)
    Index(f"{module}_outbox_by_name", outbox.c.name, sqlite_where=named, postgresql_where=named)
    dead_letters = Table(
        f"{module}_dead_letter",
        metadata,
        Column("id", key_type(36), primary_key=True),
        Column("consumer", String(255), nullable=False),
        Column("subject", String(255), nullable=False),
        Column("error", String(64), nullable=False),
        Column("detail", Text, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("first_seen", DateTime(timezone=True), nullable=False),
        Column("last_seen", DateTime(timezone=True), nullable=False),
        Column("replays", Integer, nullable=False),
        Column("message_id", String(255), nullable=False),
        Column("message_key", String(255), nullable=False),
        Column("message_headers", Text, nullable=False),
        Column("message_body", LargeBinary, nullable=False),
    )
    return inbox, outbox, dead_letters
