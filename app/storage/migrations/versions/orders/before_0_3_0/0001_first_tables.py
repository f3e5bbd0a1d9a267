"""The first tables of orders."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.storage.migrations.common import create_message_tables_1, key_type

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "orders_order",
        sa.Column("order_id", key_type(36), primary_key=True),
        sa.Column("customer_id", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(32)),
        sa.Column("items", sa.JSON, nullable=False),
        sa.Column("total_amount", sa.BigInteger),
        sa.Column("currency", sa.String(3)),
        sa.Column("is_express", sa.Boolean, nullable=False),
        sa.Column("payment_method", sa.String(255)),
        sa.Column("is_paid", sa.Boolean, nullable=False),
        sa.Column("waiting_for", sa.String(16)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("timeline", sa.JSON, nullable=False),
        sa.CheckConstraint(
            "status IN ('processing', 'reserved', 'confirmed', 'cancelled')", name="orders_order_status"
        ),
        sa.CheckConstraint("(status = 'cancelled') = (reason IS NOT NULL)", name="orders_order_reason"),
        sqlite_with_rowid=False,
    )
    op.create_index("orders_order_by_status", "orders_order", ["status", "order_id"])
    op.create_index("orders_order_by_customer", "orders_order", ["customer_id", "order_id"])
    create_message_tables_1("orders")
