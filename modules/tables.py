"""Column types that the tables of all modules share."""

from __future__ import annotations

__all__ = ["key_type"]

from sqlalchemy import String


def key_type(length: int) -> String:
    """Return the type of a key column: compared byte by byte on every database, whatever its locale."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")
