"""What may be seen of a running module from outside: its states, one or many, and the moments at which they change."""

from __future__ import annotations

__all__ = ["StateReader"]

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from app.storage.module_store import ModuleStore
from modules.module import State


class StateReader:
    """Let clients look in; see `app.runtime.service.ModuleService`."""

    def __init__(self, store: ModuleStore) -> None:
        self._rows = store.mappers
        self._database = store.database
        self._watchers: dict[tuple[type, str], set[asyncio.Event]] = {}

    async def get(self, cls: type, key: str) -> State | None:
        """Return the state of *cls* under *key*, or None."""
        rows = self._rows[cls]
        return (await self._database.read(lambda connection: rows.load(connection, (key,)))).get(key)

    async def list_states(
        self, cls: type, filters: Mapping[str, Any], *, after: str | None, limit: int, newest_first: bool
    ) -> Sequence[State]:
        """Return up to *limit* states of *cls* whose columns equal *filters*, by key, beyond *after*."""
        rows = self._rows[cls]
        return await self._database.read(
            lambda connection: rows.list_page(connection, dict(filters), after, limit, newest_first)
        )

    @asynccontextmanager
    async def watch(self, cls: type, key: str) -> AsyncIterator[AsyncIterator[None]]:
        """Enter to be woken after each change to a state; changes may be merged."""
        changed = asyncio.Event()
        watchers = self._watchers.setdefault((cls, key), set())
        watchers.add(changed)

        async def wakes() -> AsyncIterator[None]:
            while True:
                await changed.wait()
                changed.clear()
                yield

        try:
            yield wakes()
        finally:
            watchers.discard(changed)
            if not watchers:
                self._watchers.pop((cls, key), None)

    def notify(self, states: Iterable[State]) -> None:
        """Wake whoever watches one of *states*, which have changed."""
        if not self._watchers:
            return
        for state in states:
            key = self._rows[type(state)].key_of(state)
            for watcher in self._watchers.get((type(state), key), ()):
                watcher.set()
