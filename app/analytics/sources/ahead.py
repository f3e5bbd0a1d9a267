"""Read the next batch of a source while the last one is stored: DuckDB then works beside the reader."""

from __future__ import annotations

__all__ = ["ReadAhead"]

import asyncio
from collections.abc import Mapping

from app.analytics.analytics_file import Position
from app.analytics.sources.source import Batch, Source


class ReadAhead:
    """*source*, whose batches depend on its position only."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position: Position | None = None
        self._following: asyncio.Task[Batch | None] | None = None
        """Reads what follows `_position`."""

    @property
    def name(self) -> str:
        """That of the source."""
        return self._source.name

    async def read(self, positions: Mapping[str, Position]) -> Batch | None:
        """Return what follows the position, and begin to read what follows that; see `Source.read`."""
        following, self._following = self._following, None
        if following is not None and positions.get(self.name) != self._position:  # the last batch is not stored
            await _cancelled(following)
            following = None
        batch = await (following or self._source.read(positions))
        if batch is not None and not batch.is_last:
            self._position = batch.position
            self._following = asyncio.create_task(self._source.read({**positions, self.name: batch.position}))
        return batch

    async def stored(self) -> None:
        """Pass it on to the source; see `Source.stored`."""
        await self._source.stored()

    async def close(self) -> None:
        """End what is being read."""
        if self._following is not None:
            await _cancelled(self._following)


async def _cancelled(task: asyncio.Task[Batch | None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
