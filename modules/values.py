"""Value objects that all modules share."""

from __future__ import annotations

__all__ = ["Address", "Line", "Money", "rfc3339"]

from datetime import datetime
from functools import lru_cache

from attrs import frozen


@frozen
class Money:
    """An *amount* in minor units (cents, where the currency has cents) of *currency*, an ISO 4217 code."""

    amount: int
    currency: str


@frozen
class Line:
    """A quantity of one product."""

    product_id: str
    quantity: int


@frozen
class Address:
    """A postal address; *country* is an ISO 3166-1 alpha-2 code."""

    line1: str
    city: str
    postal_code: str
    country: str
    name: str | None = None
    line2: str | None = None


@lru_cache(4096)
def rfc3339(moment: datetime) -> str:
    """Return *moment*, which is in UTC, in RFC 3339 format with microseconds and a Z."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
