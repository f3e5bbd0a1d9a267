"""What the tables of all modules have in common."""

from __future__ import annotations

__all__ = ["key_type"]

from sqlalchemy import String


def key_type(length: int) -> String:
    """Return the type of a key: compared byte by byte on every database, whatever language it was made for."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")
