"""The unit prices of an order, from its reservation, and the refunds that it was asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add both; an order that exists has neither, and is refunded by amount only."""
    op.add_column("orders_order", sa.Column("unit_prices", sa.JSON))
    op.add_column("orders_order", sa.Column("refunds", sa.JSON))
