"""
The histories of the modules of one database, read in their order: what is archived from the files, the rest from the tables.

Both are read by column, so an event costs no Python object.
"""

from __future__ import annotations

__all__ = ["EVENTS_MAX", "HistorySource"]

import asyncio
from collections.abc import Mapping
from contextlib import aclosing

import pyarrow as pa
import pyarrow.compute as pc
from loguru import logger

from app.analytics.analytics_file import Position
from app.analytics.events import Incoming, archived_events, arrow_table
from app.analytics.sources.rows import RowEvents
from app.analytics.sources.source import Batch
from app.storage.archive.history_reader import HistoryReader

EVENTS_MAX = 50_000
"""Events of one batch, about: some 30 MB."""


class HistorySource:
    """Reads the events that *reader* shows."""

    def __init__(self, name: str, reader: HistoryReader) -> None:
        self.name = name
        self._reader = reader
        self._rows = RowEvents(reader.modules)
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
        archived = await self._reader.archived(after=after, count=EVENTS_MAX)
        if archived is not None:
            return await asyncio.to_thread(lambda: self._batch(archived_events(archived), False))
        events, is_last = await self._stored(after)
        return await asyncio.to_thread(self._batch, events, is_last) if events.num_rows else None

    def _batch(self, events: pa.Table, is_last: bool) -> Batch:
        last = pc.max(events["seq"]).as_py()
        (id, *_) = events.filter(pc.equal(events["seq"], last))["event_id"].to_pylist()
        return Batch(Incoming.of(events), Position(self.name, last, id), is_last, is_followed=not is_last)

    async def _stored(self, after: int) -> tuple[pa.Table, bool]:
        """Return events in the tables that follow *after*, and whether these are all."""
        tables, count = [arrow_table([])], 0
        async with aclosing(self._reader.contents(after=after)) as parts:
            async for contents in parts:
                events = None if contents is None else await asyncio.to_thread(self._rows.events, contents.rows, after)
                if events is None:  # archived since, damaged or odd
                    return (pa.concat_tables(tables), False) if count else await self._decoded(after)
                tables.append(events)
                count += events.num_rows
                if count >= EVENTS_MAX:
                    return pa.concat_tables(tables), False
        return pa.concat_tables(tables), True

    async def _decoded(self, after: int) -> tuple[pa.Table, bool]:
        """Return what `_stored` does, from decoded rows."""
        tables = [arrow_table([])]
        count = 0
        async with aclosing(self._reader.events(after=after)) as parts:
            try:
                async for events in parts:
                    tables.append(arrow_table(events))
                    count += len(events)
                    if count >= EVENTS_MAX:
                        return pa.concat_tables(tables), False
            except ValueError:
                if not count:
                    raise
                return pa.concat_tables(tables), False  # what follows is damaged: the next read raises it again
        return pa.concat_tables(tables), True

    async def _has(self, position: Position) -> bool:
        """Return whether the history can be the one that was read up to *position*."""
        following = (await self._reader.page(after=position.position - 1, limit=1)).events
        if not following:
            return False
        # An old event may have been deleted; then one that follows it is there.
        return following[0].seq != position.position or following[0].event_id == position.last_event_id

    async def stored(self) -> None:
        """Do nothing: the history keeps no position of its readers."""
