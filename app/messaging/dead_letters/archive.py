"""
The archive of dead letters: an old one goes there once its module has no state of its order in a table any more.

It can be shown there. Before it is replayed or discarded, it is moved back into the table.
"""

from __future__ import annotations

__all__ = ["DeadLetterArchive", "DeadLetterRow"]

from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Table, delete, select

from app.messaging.dead_letters.rows import aware
from app.storage.archive.state_archive import EXAMINED_MAX, Document, Swept
from app.storage.module_store import ModuleStore

KIND = "dead_letter"

DeadLetterRow = dict[str, Any]
"""The values of a row by column."""


class DeadLetterArchive:
    """The archived dead letters of the modules that *stores* and *tables* name."""

    def __init__(self, stores: Mapping[str, ModuleStore], tables: Mapping[str, Table]) -> None:
        self._stores = stores
        self._tables = tables

    def sweeps(self) -> dict[str, dict[str, Any]]:
        """Return what moves dead letters to the archive, by module: an `app.runtime.archiver.Sweep` under its kind."""
        return {name: {KIND: partial(self._move, name)} for name in self._stores}

    async def get(self, id: str) -> DeadLetterRow | None:
        """Return the archived dead letter *id*, or None."""
        for store in self._stores.values():
            find = partial(_find, store, id)
            if found := await store.database.read(find):
                return found
        return None

    async def bring_back(self, id: str) -> None:
        """Move the dead letter *id* back into its table, if it is archived and not in the table."""
        if await self.get(id) is not None:
            for name, store in self._stores.items():
                await store.database.write(partial(self._bring_back, name, id))

    def _bring_back(self, name: str, id: str, connection: Connection) -> None:
        store, table = self._stores[name], self._tables[name]
        row = _find(store, id, connection)
        if row is not None and connection.execute(select(table.c.id).where(table.c.id == id)).first() is None:
            connection.execute(table.insert().values(row))
        if row is not None:
            store.archive.table.remove(connection, KIND, [id])

    def _move(self, name: str, connection: Connection, after: str, before: datetime) -> Swept:
        """Move those of the next dead letters whose last delivery was before *before*, and whose order has no state here and is not held."""
        store, table = self._stores[name], self._tables[name]
        next_rows = select(table).where(table.c.id > after).order_by(table.c.id).limit(EXAMINED_MAX)
        examined = [dict(row._mapping) for row in connection.execute(next_rows.with_for_update(skip_locked=True))]
        old = [row for row in examined if aware(row["last_seen"]) < before and row["place"] is None]
        orders = {row["message_key"] for row in old}
        for cls in store.archive.kinds:
            orders -= store.mappers[cls].load(connection, sorted(orders)).keys()
        moved = {row["id"]: _document(row) for row in old if row["message_key"] in orders}
        if moved:
            store.archive.table.put(connection, KIND, moved)
            connection.execute(delete(table).where(table.c.id.in_(moved)))
        return Swept(list(moved), examined[-1]["id"] if len(examined) == EXAMINED_MAX else None)


def _find(store: ModuleStore, id: str, connection: Connection) -> DeadLetterRow | None:
    document = store.archive.table.find(connection, KIND, [id]).get(id)
    return None if document is None else _row(document)


def _document(row: DeadLetterRow) -> Document:
    times = {name: aware(value).isoformat() for name, value in row.items() if isinstance(value, datetime)}
    bodies = {name: b64encode(value).decode() for name, value in row.items() if isinstance(value, bytes)}
    return row | times | bodies


def _row(document: Document) -> DeadLetterRow:
    times = {name: datetime.fromisoformat(document[name]) for name in ("first_seen", "last_seen")}
    bodies = {name: None if (text := document.get(name)) is None else b64decode(text) for name in ("message_body", "edited_body")}
    return document | times | bodies
