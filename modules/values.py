"""The few values that every module speaks of in the same words."""

from __future__ import annotations

__all__ = ["Line", "Money", "rfc3339"]

from datetime import datetime
from functools import lru_cache

from attrs import frozen


@frozen
class Money:
    """*amount* minor units (cents, where there are cents) of *currency*, an ISO 4217 code."""

    amount: int
    currency: str


@frozen
class Line:
    """So many of one product."""

    product_id: str
    quantity: int


@lru_cache(4096)
def rfc3339(moment: datetime) -> str:
    """Return *moment*, which is in UTC, as RFC 3339 with microseconds and a Z."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
