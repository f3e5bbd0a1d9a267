"""Who owns the payment method of an order, at the payment provider."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add it; an order that exists names none."""
    op.add_column("orders_order", sa.Column("payment_customer", sa.String(255)))
