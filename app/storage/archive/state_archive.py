"""
The archive of a module: finished states and old dead letters, compressed, in a table of the module's own database.

A state is moved in one transaction: it is always in its table, in the archive, or in both, and then its table counts. So
a state is looked up in the archive only where its table has no row under the key. What is decided about an archived state
is written to its table, with the whole state; the copy in the archive stays until the state is moved there again.

Order, payment and reservation of one order are archived each by its own module, at different moments and independently.
"""

from __future__ import annotations

__all__ = ["ArchiveTable", "Document", "StateArchive", "Swept"]

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs
from attrs import frozen
from sqlalchemy import Connection, MetaData

from app.storage.archive.content import Document, compressed, decompressed
from app.storage.sql.dialect import Dialect
from app.storage.state_rows import Row, StateMapper
from app.storage.tables import archive_table
from bus.ids import id_lower_bound
from modules.module import Module, State

EXAMINED_MAX = 100
"""Rows that one call of `StateArchive.move` reads; other work shares its transaction and waits for it."""


@frozen
class Swept:
    """The *keys* that were moved, and the key after which to continue; None at the end."""

    keys: Sequence[str]
    next_after: str | None


class ArchiveTable:
    """The table of *module*: documents under a kind and a key. Its methods run inside the caller's transaction."""

    def __init__(self, module: str, dialect: Dialect) -> None:
        table = archive_table(module, MetaData())
        self._put = dialect.replace(table, ("id", "content"))
        self._find = dialect.by_keys(f"SELECT id, content FROM {table.name} WHERE id {{keys}}")
        self._remove = dialect.by_keys(f"DELETE FROM {table.name} WHERE id {{keys}}")
        page = f"SELECT id, content FROM {table.name} WHERE id > ? AND id < ? ORDER BY id LIMIT ?"
        self._page = dialect.to_driver_sql(page)
        self._last = dialect.to_driver_sql(f"SELECT max(id) FROM {table.name} WHERE id > ? AND id < ?")

    def put(self, connection: Connection, kind: str, documents: Mapping[str, Document]) -> None:
        """Store *documents* by key, in place of those that are there."""
        rows = [(_id(kind, key), compressed(document)) for key, document in sorted(documents.items())]
        self._put.execute(connection, rows)

    def find(self, connection: Connection, kind: str, keys: Iterable[str]) -> dict[str, Document]:
        """Return the documents that exist under *keys*, by key."""
        return _by_key(self._find.fetch(connection, [(_id(kind, key),) for key in keys])())

    def remove(self, connection: Connection, kind: str, keys: Iterable[str]) -> None:
        """Delete the documents under *keys*."""
        self._remove.execute(connection, [(_id(kind, key),) for key in keys])

    def page(self, connection: Connection, kind: str, after: str, limit: int) -> dict[str, Document]:
        """Return up to *limit* documents whose keys follow *after*, by key, in the order of the keys."""
        values = (_id(kind, after), f"{kind};", limit)  # ; follows : in the order of characters
        return _by_key(connection.exec_driver_sql(self._page, values))

    def last_key(self, connection: Connection, kind: str) -> str:
        """Return the greatest key; an empty one if there is no document."""
        found: str | None = connection.exec_driver_sql(self._last, (_id(kind, ""), f"{kind};")).scalar_one()
        return (found or "").partition(":")[2]


class StateArchive:
    """The archived states of *module*; its methods run inside the caller's transaction."""

    def __init__(self, module: Module, mappers: Mapping[type, StateMapper], dialect: Dialect) -> None:
        self.table = ArchiveTable(module.name, dialect)
        self._is_finished = module.archivable
        self._mappers = {cls: mappers[cls] for cls in module.archivable}
        self.kinds = {cls: each.table.name.removeprefix(f"{module.name}_") for cls, each in self._mappers.items()}
        """What is archived of each state class, in one word: its table's name without the module's."""
        self._skips_locked = bool(dialect.skip_locked)

    def load(self, connection: Connection, cls: type, keys: Iterable[str]) -> dict[str, State]:
        """Return the states of *cls* that are archived under *keys*, by key; none if *cls* is not archivable."""
        if cls not in self._mappers:
            return {}
        found = self.table.find(connection, self.kinds[cls], keys)
        return {key: self._state(cls, key, document) for key, document in found.items()}

    def load_all(self, connection: Connection, keys: Mapping[type, Iterable[str]]) -> dict[type, dict[str, State]]:
        """Return the states that are archived under *keys*, by class and key."""
        return {cls: self.load(connection, cls, wanted) for cls, wanted in keys.items()}

    def page(self, connection: Connection, cls: type, after: str, limit: int) -> list[State]:
        """
        Return up to *limit* archived states of *cls* whose keys follow *after*, in the order of the keys.

        A state that was changed since it was archived has a row in its table, too, and that row counts.
        """
        found = self.table.page(connection, self.kinds[cls], after, limit)
        return [self._state(cls, key, document) for key, document in found.items()]

    def last_key(self, connection: Connection, cls: type) -> str:
        """Return the greatest key of an archived state of *cls*; an empty one if there is none."""
        return self.table.last_key(connection, self.kinds[cls])

    def move(self, cls: type, connection: Connection, after: str, before: datetime) -> Swept:
        """
        Move the states of *cls* that are finished since *before*, among the next rows that follow the key *after*.

        Their keys begin with a time before *before*. Of several processes that do this, each state is moved by one: what
        another transaction has locked is left for the next sweep.
        """
        mapper, is_finished = self._mappers[cls], self._is_finished[cls]

        def finished(rows: Iterable[Row]) -> dict[str, Row]:
            return {row[0]: row for row in rows if is_finished(mapper.state(row), before)}

        examined = mapper.rows_between(connection, after, id_lower_bound(before), EXAMINED_MAX)
        found = finished(examined)
        if found and self._skips_locked:
            found = finished(mapper.lock_unlocked(connection, list(found)))
        if found:
            self.table.put(connection, self.kinds[cls], {key: _document(mapper, row) for key, row in found.items()})
            mapper.delete(connection, list(found))
        return Swept(list(found), examined[-1][0] if len(examined) == EXAMINED_MAX else None)

    def _state(self, cls: type, key: str, document: Document) -> State:
        """Return the state in *document*; fields that were added since it was archived have their defaults."""
        mapper = self._mappers[cls]
        document = {mapper.key_name: key, **document}
        state = mapper.state([document.get(name) for name in mapper.names])
        defaults = {each.name: each.default for each in attrs.fields(cls) if each.name not in document}
        state.__dict__.update({name: value for name, value in defaults.items() if value is not attrs.NOTHING})
        return state


def _document(mapper: StateMapper, row: Row) -> Document:
    """Return *row* by column, without its key, and without what is null and has no other default."""
    defaults = {each.name: each.default for each in attrs.fields(mapper.cls)}
    return {
        name: value
        for name, value in zip(mapper.names[1:], row[1:], strict=True)
        if value is not None or defaults[name] not in (None, attrs.NOTHING)
    }


def _by_key(rows: Iterable[Any]) -> dict[str, Document]:
    return {id.partition(":")[2]: decompressed(content) for id, content in rows}


def _id(kind: str, key: str) -> str:
    return f"{kind}:{key}"
