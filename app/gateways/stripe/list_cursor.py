"""
How far a list has been read that is oldest first and takes no filter, so that nobody reads it from the start again.

Stripe needs none of this: it lists the newest first and filters by time. A look-alike may do neither, and to read
thousands of charges for each look would be slower than the charges.
"""

from __future__ import annotations

__all__ = ["ListCursor"]

from collections.abc import Mapping
from typing import Any

from attrs import define, field


@define
class ListCursor:
    """Remember which charge names which order, and the last charge that was read."""

    after: str | None = None
    """Read on from there; None: from the start."""
    _ids: dict[str, dict[str, None]] = field(factory=dict)

    def ids(self, order_id: str) -> list[str]:
        """Return the charges of an order that were read so far."""
        return list(self._ids.get(order_id, ()))

    def read(self, row: Mapping[str, Any]) -> None:
        """Note which order *row* names."""
        id, metadata = row.get("id"), row.get("metadata")
        order_id = metadata.get("order_id") if isinstance(metadata, Mapping) else None
        if isinstance(id, str) and isinstance(order_id, str):
            self._ids.setdefault(order_id, {})[id] = None

    def ended(self, first: Mapping[str, Any], last: Mapping[str, Any]) -> None:
        """Note that the list was read to its end, from *first* to *last*."""
        began, ends, id = first.get("created"), last.get("created"), last.get("id")
        if type(began) is not int or type(ends) is not int or not isinstance(id, str):
            return
        # Only where the list is seen to grow at its end: what is new would be missed otherwise, and charged again.
        if self.after is not None or ends > began:
            self.after = id
