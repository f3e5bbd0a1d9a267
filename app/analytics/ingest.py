"""
Take the events of all sources into the file: read, store with the position, and read on.

While a history is read up to its end, two threads work: one reads the next batches (`app.analytics.sources.ahead`) and sorts them by
subject, one lets DuckDB store a batch. About `TRANSACTION_EVENTS` are stored in one transaction.
"""

from __future__ import annotations

__all__ = ["Ingest", "Progress", "uninterrupted"]

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from attrs import frozen
from loguru import logger

from app.analytics.analytics_file import AnalyticsFile, Taken
from app.analytics.errors import SourceUnavailable
from app.analytics.sources.source import Batch, Source
from app.storage.errors import StorageUnavailable

T = TypeVar("T")

TRANSACTION_EVENTS = 1_000_000
"""
Events that one transaction stores, about, if they are there at once. DuckDB writes its tables in blocks of 122,880 rows; each transaction
leaves one in each table that is not full. What it holds until then counts for ANALYTICS_MEMORY, and goes to the disk beyond that.
"""

POLL_SECONDS = 1.0
"""How long to wait once a source has nothing more."""

RETRY_SECONDS = 2.0
"""How long to wait once a source is out of reach."""


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
        self._writing = asyncio.Lock()
        self._reasons: set[str] = set()

    async def run(self, *, once: bool = False) -> None:
        """
        Read the stored events of all sources, then the new ones, until cancelled; with *once*, only the stored ones.

        A source that is out of reach is asked again, if it has answered before.

        Raises:
            SourceUnavailable, StorageUnavailable: A source has not answered at all.
            ValueError: A history is damaged, or of a newer release.
            FileUnusable: The file cannot be written.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                for source in self._sources:
                    tasks.create_task(self._follow(source, once))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def step(self, source: Source) -> bool:
        """
        Take what *source* has, as many batches as one transaction may store; return whether there may be more now.

        If the source fails after the first one, what it has returned before is stored.
        """
        batch = await source.read(self._positions)
        if batch is None:
            return False
        async with self._writing:
            try:
                last = await self._store_following(source, batch)
            finally:
                await uninterrupted(asyncio.to_thread(self._file.commit))
        await source.stored()
        return not last.is_last

    async def _store_following(self, source: Source, batch: Batch) -> Batch:
        """Store *batch* and those that follow it at once; return the last one."""
        count = 0
        while True:
            count += batch.events.count
            is_followed = batch.is_followed and count < TRANSACTION_EVENTS
            await uninterrupted(asyncio.to_thread(self._store, batch, is_followed))
            following = await source.read(self._positions) if is_followed else None
            if following is None:
                return batch
            batch = following

    def _store(self, batch: Batch, is_followed: bool) -> None:
        taken = self._file.take(batch.events, batch.position, unreadable=batch.unreadable, gap=batch.gap, is_followed=is_followed)
        self._positions[batch.position.source] = batch.position
        for subject, reason in taken.unreadable:
            if reason not in self._reasons:  # each reason is logged once
                self._reasons.add(reason)
                logger.warning("an event cannot be read, and is kept in unreadable_events", subject=subject, detail=reason)
        self._on_progress(Progress(batch.position.source, batch.events.count, taken))

    async def _follow(self, source: Source, once: bool) -> None:
        has_answered = False
        problem = ""
        while True:
            try:
                has_more = await self.step(source)
            except (SourceUnavailable, StorageUnavailable) as error:
                if once or not has_answered:
                    raise
                if str(error) != problem:  # an outage is logged once
                    problem = str(error)
                    logger.warning("a source is out of reach, and is asked again", source=source.name, detail=problem)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if problem:
                logger.info("a source answers again", source=source.name)
            has_answered, problem = True, ""
            if not has_more:
                if once:
                    return
                await asyncio.sleep(POLL_SECONDS)


async def uninterrupted(call: Awaitable[T]) -> T:
    """Return the result of *call*, which goes on to its end when this is cancelled: it uses what is closed afterwards."""
    task = asyncio.ensure_future(call)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:  # perhaps not the last one: a second SIGTERM does not end the call either
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()
