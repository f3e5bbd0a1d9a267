"""
Inbox, outbox and dead letters of a module, for its migrations.

The tables have editions. A new module creates them with `create_message_tables` in one step; the modules of the first
release came to today's edition in several. A released revision never changes, and neither does what it calls: a change of
the tables is a new function here, the next edition, and a new revision in every module.
"""

from __future__ import annotations

__all__ = [
    "EDITIONS",
    "add_archive_6",
    "add_audit_5",
    "add_edited_body_8",
    "add_heartbeat_4",
    "add_history_7",
    "add_place_9",
    "add_versions_2",
    "create_message_tables",
    "create_message_tables_1",
    "index_untimed_3",
    "key_type",
]

from collections.abc import Callable, Sequence

import sqlalchemy as sa
from alembic import op


def key_type(length: int) -> sa.String:
    """Return the type of a key: compared byte by byte on every database, whatever language it was made for."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def create_message_tables_1(module: str) -> None:
    """Create the inbox, outbox and dead letters of *module*, first edition."""
    op.create_table(
        f"{module}_inbox",
        sa.Column("id", key_type(255), primary_key=True),
        sa.Column("heard_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("fingerprint", sa.String(64)),
        sa.Column("answer", sa.Text),
        sqlite_with_rowid=False,
    )
    op.create_index(f"{module}_inbox_by_age", f"{module}_inbox", ["heard_at"])
    op.create_table(
        f"{module}_outbox",
        sa.Column("id", key_type(255), primary_key=True),
        sa.Column("event_id", sa.String(255), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("name", sa.String(255)),
        sa.Column("correlation_id", sa.String(128), nullable=False),
        sa.Column("causation_id", sa.String(255), nullable=False),
        sa.Column("traceparent", sa.String(55), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True)),
    )
    for name, column, where in (("unsent", "due_at", "sent_at IS NULL"), ("by_name", "name", "name IS NOT NULL")):
        condition = sa.text(where)
        op.create_index(
            f"{module}_outbox_{name}",
            f"{module}_outbox",
            [column],
            sqlite_where=condition,
            postgresql_where=condition,
        )
    op.create_table(
        f"{module}_dead_letter",
        sa.Column("id", key_type(36), primary_key=True),
        sa.Column("consumer", sa.String(255), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("error", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("first_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=False),
        sa.Column("replays", sa.Integer, nullable=False),
        sa.Column("message_id", sa.String(255), nullable=False),
        sa.Column("message_key", sa.String(255), nullable=False),
        sa.Column("message_headers", sa.Text, nullable=False),
        sa.Column("message_body", sa.LargeBinary, nullable=False),
    )


def add_versions_2(module: str) -> None:
    """Add the column that lists the versions in which an event of *module*'s outbox is published."""
    op.add_column(f"{module}_outbox", sa.Column("versions", sa.String(64)))


def index_untimed_3(module: str) -> None:
    """Restrict the index by age of *module*'s inbox to ids without a time; rows that exist count as such."""
    inbox, index = f"{module}_inbox", f"{module}_inbox_by_age"
    op.add_column(inbox, sa.Column("untimed", sa.SmallInteger, nullable=False, server_default="1"))
    op.drop_index(index, inbox)
    untimed = sa.text("untimed = 1")
    op.create_index(index, inbox, ["heard_at"], sqlite_where=untimed, postgresql_where=untimed)


def add_heartbeat_4(module: str) -> None:
    """Add the table with the time when *module* was last running; make its unsent events due on every clock."""
    op.create_table(
        f"{module}_heartbeat",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("alive_at", sa.DateTime(timezone=True), nullable=False),
    )
    due_now = "'1970-01-01T00:00:00.000000+00:00'"
    op.execute(f"UPDATE {module}_outbox SET due_at = {due_now} WHERE sent_at IS NULL AND due_at = occurred_at")


def add_audit_5(module: str) -> None:
    """Add the audit of *module*: who changed what."""
    op.create_table(
        f"{module}_audit",
        sa.Column("id", key_type(36), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(255), nullable=False),
        sa.Column("before", sa.Text),
        sa.Column("after", sa.Text),
        sa.Column("correlation_id", sa.String(128), nullable=False),
    )
    op.create_index(f"{module}_audit_by_target", f"{module}_audit", ["target", "id"])


def add_archive_6(module: str) -> None:
    """Add the archive of *module*: finished states and old dead letters, compressed."""
    op.create_table(
        f"{module}_archive",
        sa.Column("id", key_type(128), primary_key=True),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )


def add_history_7(module: str) -> None:
    """Add the history of *module*, and on PostgreSQL the sequence that numbers the histories of all modules there."""
    op.create_table(
        f"{module}_history",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    op.create_index(f"{module}_history_by_time", f"{module}_history", ["at"])
    if op.get_bind().dialect.name == "postgresql":
        # Two modules may be migrated at once, and of two that create a sequence at once one fails.
        op.execute("SELECT pg_advisory_xact_lock(hashtextextended('fulfilment history_number', 0))")
        op.execute("CREATE SEQUENCE IF NOT EXISTS history_number")


def add_edited_body_8(module: str) -> None:
    """Add the column with the body that the latest edited replay of a dead letter of *module* had."""
    op.add_column(f"{module}_dead_letter", sa.Column("edited_body", sa.LargeBinary))


def add_place_9(module: str) -> None:
    """Add the column with the place of a dead letter of *module* in the line of its key."""
    table, placed = f"{module}_dead_letter", sa.text("place IS NOT NULL")
    op.add_column(table, sa.Column("place", sa.Integer))
    op.create_index(f"{table}_in_line", table, ["message_key"], sqlite_where=placed, postgresql_where=placed)


EDITIONS: Sequence[Callable[[str], None]] = (
    create_message_tables_1,
    add_versions_2,
    index_untimed_3,
    add_heartbeat_4,
    add_audit_5,
    add_archive_6,
    add_history_7,
    add_edited_body_8,
    add_place_9,
)
"""The steps that lead to each edition of the tables, in order; the last one is what `app.storage.tables` describes."""


def create_message_tables(module: str, *, edition: int) -> None:
    """
    Create the inbox, outbox and dead letters of *module* as *edition* has them.

    A revision names the edition that is the newest one when it is written (``len(EDITIONS)``), so that it creates the
    same tables forever.
    """
    for step in EDITIONS[:edition]:
        step(module)
