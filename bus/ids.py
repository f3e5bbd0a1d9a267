"""
Ids that are derived instead of random.

Whatever follows from a message has ids derived from the message's id. Processing the message again, after a crash or by
another process, gives the same ids, so the inbox, the bus and the payment provider recognise the duplicate.
"""

from __future__ import annotations

__all__ = ["derived_id", "id_lower_bound", "time_of_id"]

import re
from datetime import UTC, datetime
from hashlib import blake2b

_BLANK = blake2b(digest_size=16)
"""Copied for each hash: a copy takes a third of the time of a new object."""

_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

_VARIANTS = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))
"""By hexadecimal digit: the digit with its two upper bits replaced by the variant of RFC 9562."""


def derived_id(cause: str, ordinal: int | str) -> str:
    """
    Return the id of the *ordinal*-th consequence of *cause*; equal arguments always give equal ids.

    The result is a UUID of version 8 (RFC 9562, section 5.8). Its first 48 bits are those of *cause* if that is a UUID,
    and a hash otherwise. An order's UUIDv7 begins with the time, and so does every id derived from it: rows of about
    the same time are neighbours in an index, however large the table grows. A UUIDv5 would serve to recognise
    duplicates, but would scatter the rows over the whole index.
    """
    hashed = _BLANK.copy()
    hashed.update(f"{cause}/{ordinal}".encode())
    digest = hashed.hexdigest()
    is_uuid = len(cause) == 36 and cause[8:24:5] == "----"
    head = cause[:13] if is_uuid else f"{digest[20:28]}-{digest[28:32]}"
    return f"{head}-8{digest[:3]}-{_VARIANTS[digest[3]]}{digest[4:7]}-{digest[7:19]}"


def id_lower_bound(moment: datetime) -> str:
    """
    Return a string that sorts between the ids of earlier times and those of *moment* and later.

    This holds for ids that begin with a time in milliseconds: UUIDs of version 7, and ids that `derived_id` derives
    from them.
    """
    digits = f"{int(moment.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}"


def time_of_id(order_id: str | None) -> datetime | None:
    """Return the time in *order_id*, when the order was placed; None if it is not a UUIDv7, so not an order's id."""
    if order_id is None or not _UUID7.fullmatch(order_id):
        return None
    try:
        return datetime.fromtimestamp(int(order_id[:8] + order_id[9:13], 16) / 1000, UTC)
    except (OverflowError, OSError, ValueError):
        return None
