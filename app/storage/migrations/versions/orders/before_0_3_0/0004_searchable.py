"""Orders are found by correlation id, reason, what they wait for, and the first characters of their ids."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.storage.migrations.common import key_type

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column and the indexes; an order that exists has no correlation id."""
    op.add_column("orders_order", sa.Column("correlation_id", key_type(128)))
    if op.get_bind().dialect.name == "postgresql":
        # A prefix is a range of values only if they are compared byte by byte.
        op.alter_column("orders_order", "customer_id", type_=key_type(64), existing_nullable=False)
    for name, column in (("correlation", "correlation_id"), ("reason", "reason"), ("waiting", "waiting_for")):
        present = sa.text(f"{column} IS NOT NULL")
        op.create_index(
            f"orders_order_by_{name}",
            "orders_order",
            [column, "order_id"],
            sqlite_where=present,
            postgresql_where=present,
        )
