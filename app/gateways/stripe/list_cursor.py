"""
A cursor for a list of charges that is sorted oldest first and cannot be filtered: each scan reads only what is new.

Stripe itself needs none: its list is sorted newest first and can be filtered by time. A compatible server may support
neither, and reading thousands of charges for each look-up would take longer than the charges themselves.
"""

from __future__ import annotations

__all__ = ["ListCursor"]

from collections.abc import Mapping
from typing import Any

from attrs import define, field


@define
class ListCursor:
    """Keep which charges name which order, and which charge was read last."""

    after: str | None = None
    """The id of the charge after which the next scan starts; None if it starts at the beginning."""
    _ids: dict[str, dict[str, None]] = field(factory=dict)

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
