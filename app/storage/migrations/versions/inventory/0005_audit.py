"""Who changed what is kept, from which value to which."""

from __future__ import annotations

from app.storage.migrations.common import add_audit_5

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the table."""
    add_audit_5("inventory")
