"""Every event that the module publishes is kept in its history."""

from __future__ import annotations

from app.storage.migrations.common import add_history_7

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the table."""
    add_history_7("payments")
