"""Follow the changes of all states of one class, whichever process makes them."""

from __future__ import annotations

__all__ = ["ChangeReader", "StateChanges"]

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from sqlalchemy import Connection

from app.runtime.states.state_reader import StateWatchers
from app.storage.module_store import ModuleStore
from app.storage.search.changes import ChangeMark, ChangePage, ChangeSearch
from bus.port import Clock
from modules.module import State


class ChangeReader(Protocol):
    """Reads which states of a module have changed. The states have an attribute ``updated_at``."""

    @property
    def is_only_writer(self) -> bool:
        """No other process changes the states of the module, so `watch` learns of each change."""

    def watch(self, cls: type) -> AbstractContextManager[set[str]]:
        """
        Enter to get a set to which the key of each state of *cls* that this process changes is added after the commit.

        Take the keys out of it: it grows otherwise.
        """

    async def mark(self, cls: type) -> ChangeMark:
        """
        Return a mark of the present.

        Raises:
            StorageUnavailable: The database is unavailable.
        """

    async def since(self, cls: type, mark: ChangeMark, after: str | None) -> ChangePage:
        """
        Return keys of states of *cls* that have changed since *mark*, in key order, beyond the key *after*.

        Every change that was not visible when the mark was made is found; some that were are found again.

        Raises:
            StorageUnavailable: The database is unavailable.
        """

    async def load(self, cls: type, keys: Sequence[str]) -> Mapping[str, State]:
        """
        Return the states of *cls* that exist under *keys*, by key.

        Raises:
            StorageUnavailable: The database is unavailable.
        """


class StateChanges:
    """Implements `ChangeReader` for the module of *store*."""

    def __init__(self, store: ModuleStore, watchers: StateWatchers, clock: Clock) -> None:
        self.is_only_writer = not store.database.dialect.is_shared
        self._database = store.database
        self._mappers = store.mappers
        self._archive = store.archive
        self._clock = clock
        self.watch = watchers.watch_all

    async def mark(self, cls: type) -> ChangeMark:
        """Return a mark of the present."""
        search, now = self._search(cls), self._clock.now()
        return await self._database.read(lambda connection: search.mark(connection, now))

    async def since(self, cls: type, mark: ChangeMark, after: str | None) -> ChangePage:
        """Return keys of states of *cls* that have changed since *mark*, beyond the key *after*."""
        search = self._search(cls)
        return await self._database.read(lambda connection: search.find(connection, mark, after))

    async def load(self, cls: type, keys: Sequence[str]) -> Mapping[str, State]:
        """Return the states of *cls* that exist under *keys*, by key."""
        mapper, archive = self._mappers[cls], self._archive

        def load(connection: Connection) -> Mapping[str, State]:
            found = mapper.load(connection, keys)
            moved = [key for key in keys if key not in found]
            return {**found, **archive.load(connection, cls, moved)} if moved else found

        return await self._database.read(load)

    def _search(self, cls: type) -> ChangeSearch:
        return ChangeSearch(self._mappers[cls].table, self._database.dialect)
