"""Tables that every module has, as they were when a revision made them. A revision that shipped never changes."""

from __future__ import annotations

__all__ = ["add_versions_2", "create_mail_1", "index_untimed_3", "key_type"]

import sqlalchemy as sa
from alembic import op


def key_type(length: int) -> sa.String:
    """Return the type of a key: compared byte by byte on every database, whatever language it was made for."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def create_mail_1(module: str) -> None:
    """Make *module*'s inbox, outbox and dead letters, first edition."""
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
    """Let *module*'s outbox say in which versions an event is said."""
    op.add_column(f"{module}_outbox", sa.Column("versions", sa.String(64)))


def index_untimed_3(module: str) -> None:
    """Keep an index by age only of what *module* has heard under an id without a time; what is there counts as such."""
    inbox, index = f"{module}_inbox", f"{module}_inbox_by_age"
    op.add_column(inbox, sa.Column("untimed", sa.SmallInteger, nullable=False, server_default="1"))
    op.drop_index(index, inbox)
    untimed = sa.text("untimed = 1")
    op.create_index(index, inbox, ["heard_at"], sqlite_where=untimed, postgresql_where=untimed)
