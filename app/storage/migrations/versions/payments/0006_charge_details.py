"""What is sent with a charge: the customer at the payment provider, and the address of the order."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add both; a payment that exists has neither."""
    op.add_column("payments_payment", sa.Column("payment_customer", sa.String(255)))
    op.add_column("payments_payment", sa.Column("shipping_address", sa.JSON))
