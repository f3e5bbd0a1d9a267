"""The first tables of payments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.storage.migrations.common import create_message_tables_1, key_type

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "payments_payment",
        sa.Column("order_id", key_type(36), primary_key=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("amount", sa.BigInteger),
        sa.Column("currency", sa.String(3)),
        sa.Column("payment_method", sa.String(255)),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("calls", sa.Integer, nullable=False),
        sa.Column("reference", sa.String(255)),
        sa.Column("reason", sa.String(64)),
        sa.Column("is_cancelled", sa.Boolean, nullable=False),
        sa.Column("is_waiting", sa.Boolean, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "status IN ('pending', 'captured', 'declined', 'unknown', 'refunded')", name="payments_payment_status"
        ),
        sa.CheckConstraint("status = 'declined' OR amount >= 0", name="payments_payment_amount"),
        sa.CheckConstraint(
            "status NOT IN ('captured', 'refunded') OR reference IS NOT NULL", name="payments_payment_reference"
        ),
        sqlite_with_rowid=False,
    )
    create_message_tables_1("payments")
