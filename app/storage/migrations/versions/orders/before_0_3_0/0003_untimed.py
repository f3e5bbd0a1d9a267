"""Index by age only those inbox rows whose ids do not begin with a time."""

from __future__ import annotations

from app.storage.migrations.common import index_untimed_3

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Change the index."""
    index_untimed_3("orders")
