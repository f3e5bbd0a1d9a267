"""Orders are found by the time of their latest change, on PostgreSQL; on SQLite the program knows what it has changed."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the index; it is tiny, and written once for many rows."""
    if op.get_bind().dialect.name == "postgresql":
        op.create_index(
            "orders_order_by_change",
            "orders_order",
            ["updated_at"],
            postgresql_using="brin",
            postgresql_with={"autosummarize": True, "pages_per_range": 32},
        )
