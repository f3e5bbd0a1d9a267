"""A dead letter may have a place in the line of its key."""

from __future__ import annotations

from app.storage.migrations.common import add_place_9

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the column and its index."""
    add_place_9("inventory")
