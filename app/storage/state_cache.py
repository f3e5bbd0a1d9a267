"""
The states that a module has written last, where the database is ours alone.

An order is written half a dozen times within a fraction of a second; so what was written last stays here, and only the
rest is read. It is as good as the database for as long as nothing was undone and nobody else has written: an operator
with a shell of his own, say. SQLite counts that (``PRAGMA data_version``), and each transaction asks it as it begins.
"""

from __future__ import annotations

__all__ = ["STATES_MAX", "StateCache"]

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection

from app.storage.sql.dialect import cache_generation
from app.storage.state_rows import StateMapper

STATES_MAX = 2048
"""States of one class in a generation. There are two; a third drops the oldest whole, for taking out one by one is slower."""


class StateCache:
    """One module's states; called within the writer's transaction."""

    def __init__(self, rows: Mapping[type, StateMapper]) -> None:
        self._rows = rows
        self._states: dict[type, dict[str, Any]] = {cls: {} for cls in rows}
        self._before: dict[type, dict[str, Any]] = {cls: {} for cls in rows}
        self._epoch: object = None

    def load(self, connection: Connection, keys: Mapping[type, Iterable[str]]) -> dict[type, dict[str, Any]]:
        """Return the states under *keys*, those that there are, by class and key."""
        self._make_sure(connection)
        world: dict[type, dict[str, Any]] = {}
        for cls, wanted in keys.items():
            kept, before = self._states[cls], self._before[cls]
            found = world[cls] = {}
            missing = []
            for key in wanted:
                state = kept.get(key) or before.get(key)
                if state is None:
                    missing.append(key)
                else:
                    found[key] = state
            if missing:
                found.update(self._rows[cls].load(connection, missing))
        return world

    def keep(self, cls: type, states: Mapping[str, Any]) -> None:
        """Remember *states*, by key, which are written."""
        kept = self._states[cls]
        kept.update(states)
        if len(kept) > STATES_MAX:
            self._before[cls], self._states[cls] = kept, {}

    def _make_sure(self, connection: Connection) -> None:
        """Forget everything if it may not be true any more."""
        now = cache_generation(connection)
        if now is not self._epoch:
            self._epoch = now
            for kept in (*self._states.values(), *self._before.values()):
                kept.clear()
