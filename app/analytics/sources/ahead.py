"""
Read the next batches of a source while one is stored: DuckDB then works beside the reader.

The end of a transaction takes DuckDB as long as several batches. What was read meanwhile is stored without a wait afterwards.
"""

from __future__ import annotations

__all__ = ["AHEAD_MAX", "ReadAhead"]

import asyncio
from collections.abc import Mapping

from app.analytics.analytics_file import Position
from app.analytics.sources.source import Batch, Source

AHEAD_MAX = 3
"""Batches that are read and not stored, beside the one that is being stored."""


class ReadAhead:
    """*source*, whose batches depend on its position only."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position: Position | None = None
        """That of the last batch that was returned; `_found` has what follows it."""
        self._found: asyncio.Queue[Batch | Exception | None] = asyncio.Queue(AHEAD_MAX - 1)
        self._reading: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """That of the source."""
        return self._source.name

    async def read(self, positions: Mapping[str, Position]) -> Batch | None:
        """Return what follows the position, and read what follows that meanwhile; see `Source.read`."""
        if positions.get(self.name) != self._position:  # the last batch is not stored
            await self.close()
        if self._reading is None:
            self._found = asyncio.Queue(AHEAD_MAX - 1)  # one more waits for its place there
            self._reading = asyncio.create_task(self._read_on(positions))
        batch = await self._found.get()
        if batch is None or isinstance(batch, Exception) or batch.is_last:
            await self.close()
        if isinstance(batch, Exception):
            raise batch
        if batch is not None:
            self._position = batch.position
        return batch

    async def _read_on(self, positions: Mapping[str, Position]) -> None:
        """Read what follows *positions*, up to what is the last now, or to an error."""
        batch: Batch | Exception | None
        while True:
            try:
                batch = await self._source.read(positions)
            except Exception as error:  # `read` raises it, in its turn
                batch = error
            await self._found.put(batch)
            if batch is None or isinstance(batch, Exception) or batch.is_last:
                return
            positions = {**positions, self.name: batch.position}

    async def stored(self) -> None:
        """Pass it on to the source; see `Source.stored`."""
        await self._source.stored()

    async def close(self) -> None:
        """End what is being read."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None
