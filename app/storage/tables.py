"""
The tables that every module has beside those of its states: inbox, outbox and dead letters; and the rows of the first two.

They are in the module's own database and carry its name. Columns are a contract with the other release that runs beside
this one during an upgrade. Where Python uses another name, it is the ``key`` of the column, given here and nowhere else.
"""

from __future__ import annotations

__all__ = [
    "DUE_NOW",
    "AuditEntry",
    "InboxEntry",
    "OutboxMessage",
    "archive_table",
    "audit_table",
    "heartbeat_table",
    "history_table",
    "message_tables",
    "shared_message_tables",
]

from datetime import datetime
from functools import cache
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

from modules.tables import key_type


class InboxEntry(NamedTuple):
    """A row of the inbox: an event or a request that was processed."""

    id: str
    processed_at: str
    untimed_id: int
    """1 if the id begins with no time, or with a future one: such a row is purged by its age, all others by their ids."""
    fingerprint: str | None
    response: str | None


class AuditEntry(NamedTuple):
    """A row of the audit: a change that a person or a key requested; *before* and *after* are JSON texts."""

    id: str
    at: datetime
    actor: str
    action: str
    target: str
    before: str | None
    after: str | None
    correlation_id: str


DUE_NOW = "1970-01-01T00:00:00.000000+00:00"
"""
The ``due_at`` of an event that must be published as soon as it is committed: due on every clock.

Such an event has no due time. The time of its commit would not do: a clock that is set back, or is behind that of the
replica which wrote the row, would hide the row until it has caught up.
"""


class OutboxMessage(NamedTuple):
    """
    A row of the outbox: an event between its commit and its publication.

    *id* is the message id on the bus, *event_id* the event's own id. They differ for a replayed dead letter, and for all
    but one of the messages of an event that is published in several versions. *timer* names an event that is due later,
    so that it can be cancelled. *occurred_at* and *due_at* are texts of one length, in UTC, that sort by time; *due_at* is
    `DUE_NOW` for an event that is not scheduled, and from the scan on that finds it due.
    """

    id: str
    event_id: str
    subject: str
    key: str
    body: bytes
    timer: str | None
    correlation_id: str
    causation_id: str
    traceparent: str
    occurred_at: str
    due_at: str
    versions: str | None = None
    """For an event published in several versions, one message each: all of them, as in the header."""


def message_tables(module: str, metadata: MetaData) -> tuple[Table, Table, Table]:
    """Return the inbox, the outbox and the dead letters of *module*; their column keys are the names that Python uses."""
    return _inbox(module, metadata), _outbox(module, metadata), _dead_letters(module, metadata)


@cache
def shared_message_tables(module: str) -> tuple[Table, Table, Table]:
    """Return the tables of `message_tables`, which all statements of this process share; nothing may be added to them."""
    return message_tables(module, MetaData())


def heartbeat_table(module: str, metadata: MetaData) -> Table:
    """
    Return the table whose row 1 holds the time when *module* was last running; see `app.storage.heartbeat`.

    After a jump of the clock two further rows hold until when the skipped time does not count as the age of a row, and that
    time less what was skipped: rows 2 and 3, after another jump meanwhile rows 4 and 5, and so on.
    """
    return Table(
        f"{module}_heartbeat",
        metadata,
        Column("id", SmallInteger, primary_key=True, autoincrement=False),
        Column("alive_at", DateTime(timezone=True), nullable=False),
    )


def audit_table(module: str, metadata: MetaData) -> Table:
    """Return the audit of *module*; see `app.storage.audit`."""
    audit = Table(
        f"{module}_audit",
        metadata,
        Column("id", key_type(36), primary_key=True),
        Column("at", DateTime(timezone=True), nullable=False),
        Column("actor", String(64), nullable=False),
        Column("action", String(64), nullable=False),
        Column("target", String(255), nullable=False),
        Column("before", Text),
        Column("after", Text),
        Column("correlation_id", String(128), nullable=False),
    )
    Index(f"{module}_audit_by_target", audit.c.target, audit.c.id)
    return audit


def archive_table(module: str, metadata: MetaData) -> Table:
    """Return the archive of *module*; see `app.storage.archive.state_archive`."""
    return Table(
        f"{module}_archive",
        metadata,
        Column("id", key_type(128), primary_key=True),
        Column("content", LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )


def history_table(module: str, metadata: MetaData) -> Table:
    """Return the history of *module*; see `app.storage.archive.history_table`."""
    history = Table(
        f"{module}_history",
        metadata,
        # SQLite's row id: rows are appended, and never moved.
        Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
        Column("at", DateTime(timezone=True), nullable=False),
        Column("content", LargeBinary, nullable=False),
    )
    Index(f"{module}_history_by_time", history.c.at)
    return history


def _inbox(module: str, metadata: MetaData) -> Table:
    inbox = Table(
        f"{module}_inbox",
        metadata,
        Column("id", key_type(255), primary_key=True),
        Column("heard_at", DateTime(timezone=True), key="processed_at", nullable=False),
        # 1 if the id does not begin with a time. All other rows are purged by a range of the primary key.
        Column("untimed", SmallInteger, key="untimed_id", nullable=False, server_default="1"),
        # For a request with an idempotency key: the hash of its body, and the response to it.
        Column("fingerprint", String(64)),
        Column("answer", Text, key="response"),
        sqlite_with_rowid=False,
    )
    untimed = inbox.c.untimed_id == 1
    Index(f"{module}_inbox_by_age", inbox.c.processed_at, sqlite_where=untimed, postgresql_where=untimed)
    return inbox


def _outbox(module: str, metadata: MetaData) -> Table:
    outbox = Table(
        f"{module}_outbox",
        metadata,
        Column("id", key_type(255), primary_key=True),
        Column("event_id", String(255), nullable=False),
        Column("subject", String(255), nullable=False),
        Column("key", String(64), nullable=False),
        Column("body", LargeBinary, nullable=False),
        # An event that is not due yet can be cancelled by this name.
        Column("name", String(255), key="timer"),
        Column("correlation_id", String(128), nullable=False),
        Column("causation_id", String(255), nullable=False),
        Column("traceparent", String(55), nullable=False),
        Column("occurred_at", DateTime(timezone=True), nullable=False),
        Column("due_at", DateTime(timezone=True), nullable=False),
        Column("sent_at", DateTime(timezone=True)),
        Column("versions", String(64)),
        # Unlike the other tables it keeps SQLite's row ids: its rows are long, and most are written and never read.
    )
    unsent, timed = outbox.c.sent_at.is_(None), outbox.c.timer.isnot(None)
    Index(f"{module}_outbox_unsent", outbox.c.due_at, sqlite_where=unsent, postgresql_where=unsent)
    Index(f"{module}_outbox_by_name", outbox.c.timer, sqlite_where=timed, postgresql_where=timed)
    return outbox


def _dead_letters(module: str, metadata: MetaData) -> Table:
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
        Column("edited_body", LargeBinary),
        # Of one that holds its key, or waits behind one that does: see `app.messaging.dead_letters.line`.
        Column("place", Integer),
    )
    placed = dead_letters.c.place.isnot(None)
    Index(f"{module}_dead_letter_in_line", dead_letters.c.message_key, sqlite_where=placed, postgresql_where=placed)
    return dead_letters
