"""
What a module needs to know before it decides, with one look into a database that is ours alone.

An order is written half a dozen times within a fraction of a second; so the states that were written last stay here, and
only the others are read. They are as good as the database for as long as nothing was undone and nobody else has written:
an operator with a shell of his own, say. SQLite counts that (``PRAGMA data_version``), and each look asks it.
"""

from __future__ import annotations

__all__ = ["STATES_MAX", "Known", "Memory"]

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection

from app.database import epoch
from app.rows import Rows

STATES_MAX = 4096
"""States of one class; those that were written longest ago go first."""

Known = dict[str, tuple[str | None, str | None]]
"""What was heard before: by id, the fingerprint and the answer that are kept for it."""


class Memory:
    """One module's states of late; called in the writer's thread, within its transaction."""

    def __init__(self, inbox: str, rows: Mapping[type, Rows]) -> None:
        self._rows = rows
        asked = "(SELECT value FROM json_each(?))"
        parts = [
            "SELECT data_version FROM pragma_data_version",
            f"SELECT json_group_array(json_array(id, fingerprint, answer)) FROM {inbox} WHERE id IN {asked}",
            *(each.among(asked) for each in rows.values()),
        ]
        self._look = f"SELECT {', '.join(f'({part})' for part in parts)}"
        self._states: dict[type, dict[str, Any]] = {cls: {} for cls in rows}
        self._epoch: object = None
        self._version: int | None = None

    def recall(
        self, connection: Connection, ids: Sequence[str], keys: Mapping[type, Iterable[str]]
    ) -> tuple[Known, dict[type, dict[str, Any]]]:
        """Return which of *ids* were heard before, and the states under *keys*, those that there are, by class and key."""
        if (now := epoch(connection)) is not self._epoch:
            self._epoch = now
            self._forget()
        world = {cls: {key: kept[key] for key in keys[cls] if key in kept} for cls, kept in self._states.items() if cls in keys}
        missing = {cls: [key for key in keys[cls] if key not in found] for cls, found in world.items()}
        version, heard, read = self._ask(connection, ids, missing)
        if version != self._version:
            self._version = version
            self._forget()
            world = {cls: {} for cls in world}
            _, heard, read = self._ask(connection, ids, keys)
        for cls, states in read.items():
            world[cls].update(states)
        return {id: (fingerprint, answer) for id, fingerprint, answer in heard}, world

    def keep(self, cls: type, states: Mapping[str, Any]) -> None:
        """Remember *states*, by key, which are written."""
        kept = self._states[cls]
        for key, state in states.items():
            kept.pop(key, None)  # what was written last stands last
            kept[key] = state
        while len(kept) > STATES_MAX:
            del kept[next(iter(kept))]

    def _ask(
        self, connection: Connection, ids: Sequence[str], keys: Mapping[type, Iterable[str]]
    ) -> tuple[int, list[tuple[str, str | None, str | None]], dict[type, dict[str, Any]]]:
        values = [_array(ids), *(_array(keys.get(cls, ())) for cls in self._rows)]
        # Straight to the driver, as all that is said for each batch.
        version, heard, *found = connection.connection.cursor().execute(self._look, values).fetchone()
        states = {cls: rows.states(text) for (cls, rows), text in zip(self._rows.items(), found, strict=True) if cls in keys}
        return version, orjson.loads(heard), states

    def _forget(self) -> None:
        for kept in self._states.values():
            kept.clear()


def _array(texts: Iterable[str]) -> str:
    return orjson.dumps(list(texts)).decode()
