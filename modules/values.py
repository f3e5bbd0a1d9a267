"""The few values that every module speaks of in the same words."""

from __future__ import annotations

__all__ = ["Address", "Line", "Money", "rfc3339"]

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


@frozen
class Address:
    """Where something goes; *country* is an ISO 3166-1 alpha-2 code."""

    line1: str
    city: str
    postal_code: str
    country: str
    name: str | None = None
    line2: str | None = None


@lru_cache(4096)
def rfc3339(moment: datetime) -> str:
    """Return *moment*, which is in UTC, as RFC 3339 with microseconds and a Z."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
