"""When the module was last running is stored, and an event that is not scheduled is due on every clock."""

from __future__ import annotations

from app.storage.migrations.common import add_heartbeat_4

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the table, and change the events that wait."""
    add_heartbeat_4("orders")
