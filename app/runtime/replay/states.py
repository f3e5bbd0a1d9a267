"""
The states of a module while its history is decided again.

They begin empty, or as they are in a copy of the database from an earlier time, and are written to the tables of another
database. Those in use stay in memory, a limited number of each class.
"""

from __future__ import annotations

__all__ = ["STATES_MAX", "Baseline", "ReplayStore", "greatest_key"]

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from app.storage.module_store import ModuleStore, ProcessedIds
from app.storage.sql.database import Database
from modules.module import Key, Module

STATES_MAX = 8192
"""
States of one class in one half of those in memory.

When the current half is full it becomes the previous one, and what has changed in the one before is written.
"""


class Baseline:
    """The states of one module in a copy of its database: *connection* has a snapshot of it."""

    def __init__(self, store: ModuleStore, connection: Connection) -> None:
        self._store = store
        self._connection = connection
        self._greatest = {cls: greatest_key(store, connection, cls) for cls in store.mappers}

    def load(self, cls: type, keys: Iterable[str]) -> dict[str, Any]:
        """Return the states of *cls* that the copy has under *keys*, archived or not, by key."""
        wanted = [key for key in keys if key <= self._greatest[cls]]
        if not wanted:
            return {}
        found = self._store.archive.load(self._connection, cls, wanted)
        return found | self._store.mappers[cls].load(self._connection, wanted)


def greatest_key(store: ModuleStore, connection: Connection, cls: type) -> str:
    """Return a key that no state of *cls* in *store*, archived or not, exceeds; an empty one if there is no state."""
    mapper = store.mappers[cls]
    found: str | None = connection.exec_driver_sql(f'SELECT max("{mapper.key_name}") FROM {mapper.table.name}').scalar_one()
    archived = store.archive.last_key(connection, cls) if cls in store.archive.kinds else ""
    return max(found or "", archived)


class ReplayStore(ModuleStore):
    """
    The states of *module*, in the place of its store when `app.runtime.batch.BatchProcessor` decides.

    The states are written to *database*, whose tables of the module were empty, over one open connection.
    """

    def __init__(self, module: Module, database: Database) -> None:
        super().__init__(module, database)
        self.baseline: Baseline | None = None
        self.begins_with: str | None = None
        """States whose keys are smaller may exist although the history does not have their beginning; None: none does."""
        self.begun_before: dict[type, set[str]] = {cls: set() for cls in self.mappers}
        """The keys of the states that are unknown, because the history does not have their beginning."""
        self._current: dict[type, dict[str, Any]] = {cls: {} for cls in self.mappers}
        self._previous: dict[type, dict[str, Any]] = {cls: {} for cls in self.mappers}
        self._changed: dict[type, set[str]] = {cls: set() for cls in self.mappers}
        """The keys of the states in memory that are not written yet."""
        self._written: dict[type, str] = defaultdict(str)
        """The greatest key that was written."""

    def load_with_inbox(
        self, connection: Connection, ids: Sequence[str], keys: Mapping[type, Collection[str]]
    ) -> tuple[ProcessedIds, dict[type, dict[str, Any]]]:
        """Return no ids, for the history has no decision twice, and the states under *keys*."""
        return {}, {cls: self.states(connection, cls, wanted) for cls, wanted in keys.items()}

    def states(self, connection: Connection, cls: type, keys: Iterable[str]) -> dict[str, Any]:
        """Return the states of *cls* that exist under *keys*, by key."""
        current, previous = self._current[cls], self._previous[cls]
        found: dict[str, Any] = {}
        missing = []
        for key in keys:
            state = current.get(key)
            if state is None:
                state = previous.get(key)
            if state is None:
                missing.append(key)
            else:
                found[key] = state
        if missing:
            greatest = self._written[cls]
            # Most orders are new, and their keys are the greatest yet.
            if written := [key for key in missing if key <= greatest]:
                found |= self.mappers[cls].load(connection, written)
            if self.baseline is not None:
                found = self.baseline.load(cls, [key for key in missing if key not in found]) | found
        return found

    def put(self, connection: Connection, changed: Mapping[type, Mapping[str, Any]]) -> None:
        """Keep the states *changed* by one transaction, by class and key; write some of the others if they are many."""
        for cls, states in changed.items():
            current = self._current[cls]
            if unknown := self.begun_before[cls]:
                states = {key: state for key, state in states.items() if key not in unknown}
            current.update(states)
            self._changed[cls].update(states)
            if len(current) > STATES_MAX:
                previous, self._previous[cls], self._current[cls] = self._previous[cls], current, {}
                self._write(connection, cls, [key for key in previous if key not in current], previous)

    def flush(self, connection: Connection) -> None:
        """Write everything that is not written yet."""
        for cls in self.mappers:
            states = self._previous[cls] | self._current[cls]
            self._write(connection, cls, states, states)

    def is_unknown(self, connection: Connection, key: Key) -> bool:
        """Return whether the state under *key* may have begun before the history."""
        cls, id = key
        if id in self.begun_before[cls]:
            return True
        if self.begins_with is None or (cls in self.module.archivable and id >= self.begins_with):
            return False
        return not self.states(connection, cls, (id,))

    def set_unknown(self, connection: Connection, keys: Iterable[Key]) -> None:
        """Forget the states under *keys*, which something unknown has changed."""
        for cls, key in keys:
            self.begun_before[cls].add(key)
            self._current[cls].pop(key, None)
            self._previous[cls].pop(key, None)
            self._changed[cls].discard(key)
            if key <= self._written[cls]:
                self.mappers[cls].delete(connection, (key,))

    def _write(self, connection: Connection, cls: type, keys: Iterable[str], states: Mapping[str, Any]) -> None:
        changed = self._changed[cls]
        if wanted := [key for key in keys if key in changed]:
            for start in range(0, len(wanted), 1024):
                self.mappers[cls].save(connection, [states[key] for key in wanted[start : start + 1024]])
            changed.difference_update(wanted)
            self._written[cls] = max(self._written[cls], max(wanted))
