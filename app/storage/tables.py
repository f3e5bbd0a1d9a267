"""
The tables that every module has beside its states: inbox, outbox and dead letters.

They stand in the module's own database and carry the module's name. Columns are a contract with the release that runs
beside this one during an upgrade; Python names may differ from them and are mapped in this package only.
"""

from __future__ import annotations

__all__ = ["message_tables"]

from sqlalchemy import Column, DateTime, Index, Integer, LargeBinary, MetaData, SmallInteger, String, Table, Text

from modules.tables import key_type


def message_tables(module: str, metadata: MetaData) -> tuple[Table, Table, Table]:
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
