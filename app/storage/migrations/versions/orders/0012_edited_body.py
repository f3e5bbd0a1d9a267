"""A dead letter keeps the body with which it was replayed, beside its own."""

from __future__ import annotations

from app.storage.migrations.common import add_edited_body_8

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add the column."""
    add_edited_body_8("orders")
