"""
What was read of a list of charges, so that each scan reads only what is new.

Reading thousands of charges for each look-up would take longer than the charges themselves. Stripe's list is sorted newest
first and can be filtered by time: the period that was read is remembered. A compatible server may sort it oldest first and
have no filter: the last charge that was read is remembered.
"""

from __future__ import annotations

__all__ = ["ListCursor"]

from collections.abc import Mapping
from typing import Any

from attrs import define, field

ORDERS_MAX = 200_000
"""When more orders are remembered, all are forgotten: a list is read during an outage, and of that time only."""


@define
class ListCursor:
    """Keep which charges name which order, and which charge was read last."""

    after: str | None = None
    """The id of the charge after which the next scan starts; None if it starts at the beginning."""
    _ids: dict[str, dict[str, None]] = field(factory=dict)
    _read: tuple[int, int] | None = None
    """From when until when a list that can be filtered has been read, in seconds since 1970."""

    def ids(self, order_id: str) -> list[str]:
        """Return the ids of the order's charges that were read so far."""
        return list(self._ids.get(order_id, ()))

    def add(self, row: Mapping[str, Any]) -> None:
        """Store which order *row* names."""
        id, metadata = row.get("id"), row.get("metadata")
        order_id = metadata.get("order_id") if isinstance(metadata, Mapping) else None
        if isinstance(id, str) and isinstance(order_id, str):
            self._ids.setdefault(order_id, {})[id] = None

    def advance(self, first: Mapping[str, Any], last: Mapping[str, Any]) -> None:
        """Move the cursor to *last*, after a scan that read the list from *first* to *last*, its end."""
        first_created, last_created, id = first.get("created"), last.get("created"), last.get("id")
        if type(first_created) is not int or type(last_created) is not int or not isinstance(id, str):
            return
        # Only if the scan shows that the list grows at its end. Otherwise new charges would be missed, and made twice.
        if self.after is not None or last_created > first_created:
            self.after = id

    def unread_since(self, since: int) -> int:
        """Return where to start reading to find everything created at *since* or later: at *since*, or later."""
        if self._read is None or since < self._read[0]:
            return since
        return max(since, self._read[1])

    def mark_read(self, since: int, until: int) -> None:
        """Note that everything created from *since* until *until* has been read and added."""
        if len(self._ids) > ORDERS_MAX:
            self._ids.clear()
            self._read = None
            return
        # One period is remembered. What lies between an earlier one and *since* has not been read: the earlier one is forgotten.
        if self._read is None or not self._read[0] <= since <= self._read[1]:
            self._read = (since, until)
        else:
            self._read = (self._read[0], max(until, self._read[1]))
