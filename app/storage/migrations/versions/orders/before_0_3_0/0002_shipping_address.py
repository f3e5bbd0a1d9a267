"""Add the shipping address of an order, and the versions in which an event of the outbox is published."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.storage.migrations.common import add_versions_2

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add both; what is there already has neither."""
    op.add_column("orders_order", sa.Column("shipping_address", sa.JSON))
    add_versions_2("orders")
