"""The histories of the modules of one database, read in their order."""

from __future__ import annotations

__all__ = ["EVENTS_MAX", "HistorySource"]

from collections.abc import Mapping

from loguru import logger

from app.analytics.analytics_file import Position
from app.analytics.events import arrow_table
from app.analytics.sources.source import Batch
from app.storage.archive.history_content import HistoryEvent
from app.storage.archive.history_reader import HistoryReader

EVENTS_MAX = 100_000
"""Events of one batch: some 100 MB while they are converted."""


class HistorySource:
    """Reads the events that *reader* shows."""

    def __init__(self, name: str, reader: HistoryReader) -> None:
        self.name = name
        self._reader = reader
        self._is_checked = False

    async def read(self, positions: Mapping[str, Position]) -> Batch | None:
        """Return what follows the position of this history; see `Source.read`."""
        position = positions.get(self.name)
        if position is not None and not self._is_checked and not await self._has(position):
            logger.warning(
                "the history has other events than before, and is read from its beginning: was the database replaced?",
                source=self.name,
            )  # fmt: skip
            position = None
        self._is_checked = True
        after = 0 if position is None else position.position
        events: list[HistoryEvent] = []
        next_after: int | None = after
        while next_after is not None and len(events) < EVENTS_MAX:
            page = await self._reader.page(after=next_after, limit=EVENTS_MAX - len(events))
            events += page.events
            next_after = page.next_after
        if not events:
            return None
        last = events[-1]
        return Batch(arrow_table(events), Position(self.name, last.seq, last.event_id), next_after is None)

    async def _has(self, position: Position) -> bool:
        """Return whether the history can be the one that was read up to *position*."""
        following = (await self._reader.page(after=position.position - 1, limit=1)).events
        if not following:
            return False
        # An old event may have been deleted; then one that follows it is there.
        return following[0].seq != position.position or following[0].event_id == position.last_event_id

    async def stored(self) -> None:
        """Do nothing: the history keeps no position of its readers."""
