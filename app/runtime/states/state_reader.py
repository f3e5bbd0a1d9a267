"""Read a module's states from outside its transactions, and watch them change."""

from __future__ import annotations

__all__ = ["StateReader", "StateWatchers"]

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from app.storage.module_store import ModuleStore
from modules.filters import Condition
from modules.module import State


class StateReader:
    """Read committed states; see `app.runtime.service.ModuleService`."""

    def __init__(self, store: ModuleStore) -> None:
        self._mappers = store.mappers
        self._archive = store.archive
        self._database = store.database
        self._history = store.history

    async def get(self, cls: type, key: str) -> State | None:
        """Return the state of *cls* under *key*, from the archive if it is there, or None."""
        mapper, archive = self._mappers[cls], self._archive

        def load(connection: Connection) -> State | None:
            found = mapper.load(connection, (key,)) or archive.load(connection, cls, (key,))
            return found.get(key)

        return await self._database.read(load)

    async def list_states(
        self, cls: type, filters: Mapping[str, Any], *, after: str | None, limit: int, newest_first: bool
    ) -> Sequence[State]:
        """Return up to *limit* states of *cls* whose columns equal *filters*, in key order, beyond *after*."""
        mapper = self._mappers[cls]
        return await self._database.read(
            lambda connection: mapper.list_page(connection, dict(filters), after, limit, newest_first)
        )

    async def search(
        self, cls: type, conditions: Sequence[Condition], *, after: str | None, limit: int, newest_first: bool
    ) -> tuple[Sequence[State], str | None]:
        """Return up to *limit* states of *cls* that meet all *conditions*, and where the search stopped."""
        mapper = self._mappers[cls]
        return await self._database.read(
            lambda connection: mapper.search(connection, conditions, after, limit, newest_first)
        )

    async def last_decided_at(self) -> datetime | None:
        """Return the newest time of the last decisions in the module's history; None without one."""
        return await self._database.read(self._history.newest_at)


class StateWatchers:
    """Notifies the watchers of single states, and those of all states of a class, of changes after the commit."""

    def __init__(self, key_of: Mapping[type, Callable[[State], str]]) -> None:
        self._key_of = key_of
        self._by_state: dict[tuple[type, str], set[asyncio.Event]] = {}
        self._key_sets: dict[type, list[set[str]]] = {}
        self.is_idle = True
        """Nothing is watched: `notify` need not be called."""

    @asynccontextmanager
    async def watch(self, cls: type, key: str) -> AsyncIterator[AsyncIterator[None]]:
        """Yield an iterator that yields after each change of the state; several changes may be merged into one."""
        changed = asyncio.Event()
        watchers = self._by_state.setdefault((cls, key), set())
        watchers.add(changed)
        self.is_idle = False

        async def changes() -> AsyncIterator[None]:
            while True:
                await changed.wait()
                changed.clear()
                yield

        try:
            yield changes()
        finally:
            watchers.discard(changed)
            if not watchers:
                self._by_state.pop((cls, key), None)
            self.is_idle = not self._by_state and not self._key_sets

    @contextmanager
    def watch_all(self, cls: type) -> Iterator[set[str]]:
        """Yield a set to which the key of each changed state of *cls* is added; take the keys out of it."""
        keys: set[str] = set()
        self._key_sets.setdefault(cls, []).append(keys)
        self.is_idle = False
        try:
            yield keys
        finally:
            self._key_sets[cls] = [each for each in self._key_sets[cls] if each is not keys]
            if not self._key_sets[cls]:
                del self._key_sets[cls]
            self.is_idle = not self._by_state and not self._key_sets

    def notify(self, states: Iterable[State]) -> None:
        """Wake the watchers of *states*, which have changed."""
        for state in states:
            cls = type(state)
            key = self._key_of[cls](state)
            for changed in self._by_state.get((cls, key), ()):
                changed.set()
            for keys in self._key_sets.get(cls, ()):
                keys.add(key)
