"""The first tables of inventory."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.storage.migrations.common import create_message_tables_1, key_type

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "inventory_product",
        sa.Column("product_id", key_type(64), primary_key=True),
        sa.Column("name", sa.String(255)),
        sa.Column("on_hand", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.Column("unit_price_amount", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.CheckConstraint("reserved BETWEEN 0 AND on_hand", name="inventory_product_reserved"),
        sa.CheckConstraint("unit_price_amount >= 0", name="inventory_product_price"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "inventory_reservation",
        sa.Column("order_id", key_type(36), primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("lines", sa.JSON, nullable=False),
        sa.CheckConstraint(
            "status IN ('held', 'rejected', 'shipped', 'released')", name="inventory_reservation_status"
        ),
        sqlite_with_rowid=False,
    )
    create_message_tables_1("inventory")
