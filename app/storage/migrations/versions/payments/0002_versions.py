"""Add to the outbox the versions in which each event is published."""

from __future__ import annotations

from app.storage.migrations.common import add_versions_2

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; an existing row is published in one version."""
    add_versions_2("payments")
