"""Finished states and old dead letters can be moved to an archive."""

from __future__ import annotations

from app.storage.migrations.common import add_archive_6

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the table."""
    add_archive_6("payments")
