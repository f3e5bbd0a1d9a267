"""Ids that need no dice."""

from __future__ import annotations

__all__ = ["caused_id"]

from hashlib import blake2b


def caused_id(cause: str, ordinal: int | str) -> str:
    """
    Return the id of the *ordinal*-th thing caused by *cause*: the same for the same arguments, always.

    The result is a UUID of version 8 (RFC 9562, section 5.8). Its first 48 bits are those of *cause* when that is a
    UUID, and a hash otherwise. An order's UUIDv7 begins with the time, and so does every id that descends from it:
    whatever belongs to one moment lies together in an index, however large the table grows. A plain UUIDv5 would do
    for recognising copies, but scatters its rows over the whole of it.
    """
    digest = blake2b(f"{cause}/{ordinal}".encode(), digest_size=16).hexdigest()
    head = (
        cause[:13]
        if len(cause) == 36 and cause[8] == cause[13] == cause[18] == cause[23] == "-"
        else f"{digest[20:28]}-{digest[28:32]}"
    )
    return f"{head}-8{digest[:3]}-{'89ab'[int(digest[3], 16) & 3]}{digest[4:7]}-{digest[7:19]}"
