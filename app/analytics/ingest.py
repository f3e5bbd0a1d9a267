"""Take the events of all sources into the file: read, store with the position, and read on."""

from __future__ import annotations

__all__ = ["Ingest", "Progress"]

import asyncio
from collections.abc import Callable, Sequence

from attrs import frozen
from loguru import logger

from app.analytics.analytics_file import AnalyticsFile, Taken
from app.analytics.sources.source import Source

POLL_SECONDS = 1.0
"""How long to wait once no source has anything more."""


@frozen
class Progress:
    """What one batch has brought."""

    source: str
    read: int
    """Events that came from the source, those that the file had before included."""
    taken: Taken


class Ingest:
    """Reads *sources* into *file*."""

    def __init__(self, file: AnalyticsFile, sources: Sequence[Source], on_progress: Callable[[Progress], None]) -> None:
        self._file = file
        self._sources = sources
        self._on_progress = on_progress
        self._positions = file.positions()
        self._reasons: set[str] = set()

    async def run(self) -> None:
        """Take what is there, and what comes, until it is cancelled."""
        while True:
            if not await self.step():
                await asyncio.sleep(POLL_SECONDS)

    async def catch_up(self) -> None:
        """Take what is there now."""
        while await self.step():
            pass

    async def step(self) -> bool:
        """Take one batch of each source; return whether there may be more."""
        has_more = False
        for source in self._sources:
            batch = await source.read(self._positions.get(source.name))
            if batch is None:
                continue
            taken = await asyncio.to_thread(self._file.take, batch.events, batch.position)
            self._positions[source.name] = batch.position
            self._log(taken)
            self._on_progress(Progress(source.name, batch.events.num_rows, taken))
            has_more = has_more or not batch.is_last
        return has_more

    def _log(self, taken: Taken) -> None:
        """Log each reason for which an event was kept as unreadable once."""
        for subject, reason in taken.unreadable:
            if reason not in self._reasons:
                self._reasons.add(reason)
                logger.warning("an event cannot be read; it is kept in unreadable_events", subject=subject, detail=reason)
