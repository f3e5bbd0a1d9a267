"""Finished states and old dead letters can be moved to an archive."""

from __future__ import annotations

from app.storage.migrations.common import add_archive_6

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the table."""
    add_archive_6("orders")
