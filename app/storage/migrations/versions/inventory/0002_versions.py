"""In which versions an event of the outbox is said."""

from __future__ import annotations

from app.storage.migrations.common import add_versions_2

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add it; what is there already is said in one."""
    add_versions_2("inventory")
