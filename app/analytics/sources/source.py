"""What the analytics read events from."""

from __future__ import annotations

__all__ = ["Batch", "Source"]

from typing import Protocol

import pyarrow as pa
from attrs import frozen

from app.analytics.analytics_file import Position


@frozen
class Batch:
    """Events that follow each other in a source."""

    events: pa.Table
    """With the columns of `app.analytics.events.SCHEMA`."""
    position: Position
    """What is to be stored with them."""
    is_last: bool
    """True if the source had no more when it was asked."""


class Source(Protocol):
    """A source of events, read from where its last position was stored."""

    @property
    def name(self) -> str:
        """The name under which the position is stored."""

    async def read(self, position: Position | None) -> Batch | None:
        """
        Return what follows *position*, or from the beginning; None if there is nothing now.

        Returns at most as much as a transaction should have. What was returned, and not stored, is returned again.

        Raises:
            StorageUnavailable: The source is out of reach; ask again later.
            ValueError: What is there is damaged, or of a newer release.
        """
