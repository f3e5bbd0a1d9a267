"""Payments that wait for a person are found without reading all others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the index."""
    present = sa.text("reason IS NOT NULL")
    op.create_index(
        "payments_payment_with_reason", "payments_payment", ["order_id"], sqlite_where=present, postgresql_where=present
    )
