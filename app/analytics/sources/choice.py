"""Choose where the events of each module come from, and open it."""

from __future__ import annotations

__all__ = ["SOURCES", "Sources", "open_sources"]

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from attrs import frozen
from loguru import logger

from app.analytics.errors import SourceUnavailable
from app.analytics.sources.ahead import ReadAhead
from app.analytics.sources.history import HistorySource
from app.analytics.sources.jetstream import JetStreamSource
from app.analytics.sources.source import Source
from app.clock import SystemClock
from app.messaging.event_registry import all_modules
from app.messaging.nats_session import BrokerOutOfReach, servers, session
from app.storage.archive.history_reader import HistoryReader
from app.storage.archive.parquet_archive import Archive
from app.storage.databases import DatabaseUnreachable, Storage, build_storage, require_existing
from bus.contracts.registry import ContractRegistry
from config.settings import Settings

SOURCES = ("auto", "database", "bus")
"""
Where the events come from.

``auto`` takes the history in the database of a module if its address is set, or if its SQLite file is there, and otherwise the stream
of the module.
"""


@frozen
class Sources:
    """What is read, and the modules whose events come over the bus."""

    sources: Sequence[Source]
    over_bus: Sequence[str]


@asynccontextmanager
async def open_sources(settings: Settings, contracts: ContractRegistry, file_id: str, kind: str = "auto") -> AsyncIterator[Sources]:
    """
    Yield the sources of all modules that *settings* name, and close them at the end.

    Raises:
        SourceUnavailable: NATS is out of reach.
        DatabaseUnreachable, NotMigrated, NewerDatabase: A database cannot be read.
    """
    stored = [name for name in settings.modules if kind == "database" or (kind == "auto" and _has_database(settings, name))]
    over_bus = [name for name in settings.modules if name not in stored]
    found: list[Source] = []
    async with AsyncExitStack() as stack:
        if stored:
            require_existing(settings, stored)
            storage = build_storage(settings, [module for module in all_modules() if module.name in stored])
            stack.push_async_callback(storage.close)
            storage.check_tables()
            for history in _histories(storage):
                found.append(ahead := ReadAhead(history))
                stack.push_async_callback(ahead.close)
        if over_bus:
            try:
                connection = await stack.enter_async_context(session(lambda: servers(settings), SystemClock()))
            except BrokerOutOfReach as error:
                raise SourceUnavailable(str(error)) from None
            found += [JetStreamSource(name, lambda: connection.js, contracts, file_id) for name in over_bus]
        logger.info("events are taken", databases=",".join(stored), streams=",".join(over_bus))
        yield Sources(found, over_bus)


def _has_database(settings: Settings, module: str) -> bool:
    if settings.bus == "memory" or settings.database_url(module).startswith("postgresql:"):
        return True
    try:
        require_existing(settings, [module])
    except DatabaseUnreachable:
        return False
    return True


def _histories(storage: Storage) -> list[Source]:
    """Return one source for each database: the histories in it have an order together."""
    by_database: dict[int, list[str]] = {}
    for name, store in storage.stores.items():
        by_database.setdefault(id(store.database), []).append(name)
    found: list[Source] = []
    folder = storage.settings.history_archive
    archive = None if folder is None else Archive(Path(folder))
    for names in by_database.values():
        stores = {name: storage.stores[name] for name in names}
        histories = {name: (store.database, store.history) for name, store in stores.items()}
        reader = HistoryReader(histories, archive=archive)
        found.append(HistorySource(f"history {','.join(names)}", reader))
    return found
