"""Add the ledger of a payment: refunds in parts, pending ones, and disputes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add it; existing payments have none."""
    op.add_column("payments_payment", sa.Column("ledger", sa.JSON))
