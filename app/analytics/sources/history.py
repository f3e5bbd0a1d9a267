"""The histories of the modules of one database, read in their order."""

from __future__ import annotations

__all__ = ["EVENTS_MAX", "HistorySource"]


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

    async def read(self, position: Position | None) -> Batch | None:
        """Return what follows *position*; see `Source.read`."""
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
