"""
States and rows: how an attrs class becomes a row of its table and comes back.

Everything is prepared once per class. Rows go in many to a statement: the sizes are powers of two, so that each text is
compiled once, and the database's own statement cache knows it from then on.
"""

from __future__ import annotations

__all__ = ["Rows", "Statement", "in_chunks"]

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, get_args, get_type_hints

import attrs
import orjson
from cattrs import Converter
from sqlalchemy import JSON, Connection, Table
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect

CHUNK_MAX = 128
"""Rows of one statement; SQLite takes 32,766 values in one."""

_IDENTIFIERS = sqlite_dialect().identifier_preparer


class Statement:
    """
    One statement over many rows, for any number of them.

    *text* says the statement for a given number of rows; *width* values belong to each row.
    """

    def __init__(self, text: Callable[[int], str], width: int) -> None:
        self._text = text
        self._width = width
        self._texts: dict[int, str] = {}

    def run(self, connection: Connection, rows: Sequence[Sequence[Any]], before: tuple[Any, ...] = ()) -> list[Any]:
        """Run it for *rows*, a few times if need be; *before* are values that come first. Return all that it returns."""
        found: list[Any] = []
        for chunk in in_chunks(rows):
            size = len(chunk)
            text = self._texts.get(size)
            if text is None:
                text = self._texts[size] = self._text(size)
            result = connection.exec_driver_sql(text, before + tuple(value for row in chunk for value in row))
            if result.returns_rows:
                found.extend(result.fetchall())
        return found


def in_chunks(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Cut *rows* into pieces whose lengths are powers of two, the largest first."""
    start, left = 0, len(rows)
    while left:
        size = min(CHUNK_MAX, 1 << (left.bit_length() - 1))
        yield rows[start : start + size]
        start += size
        left -= size


class Rows:
    """The rows of one state class."""

    def __init__(self, cls: type, table: Table) -> None:
        fields = attrs.fields(cls)
        names = [field.name for field in fields]
        if names != [column.name for column in table.columns]:
            raise TypeError(f"{cls.__name__} and {table.name} do not have the same columns in the same order")
        self.cls = cls
        self.table = table
        self.key_name = names[0]
        hints = get_type_hints(cls)
        converter = Converter(detailed_validation=False)
        codecs = [_codec(converter, hints[name], table.columns[name].type) for name in names]
        self._writers = [(name, write) for name, (write, _) in zip(names, codecs, strict=True)]
        self._readers = [(name, read) for name, (_, read) in zip(names, codecs, strict=True)]

        columns = ", ".join(_quoted(name) for name in names)
        row = f"({', '.join('?' for _ in names)})"
        changes = ", ".join(f"{_quoted(name)} = excluded.{_quoted(name)}" for name in names[1:])
        key = _quoted(names[0])
        self._select = f"SELECT {columns} FROM {table.name}"
        self._upsert = Statement(
            lambda size: (
                f"INSERT INTO {table.name} ({columns}) VALUES {', '.join([row] * size)}"
                f" ON CONFLICT ({key}) DO UPDATE SET {changes}"
            ),
            len(names),
        )
        self._load = Statement(lambda size: f"{self._select} WHERE {key} IN ({', '.join('?' * size)})", 1)

    def load(self, connection: Connection, keys: Sequence[str]) -> dict[str, Any]:
        """Return the states under *keys*, those that there are, by key."""
        found = self._load.run(connection, [(key,) for key in keys])
        return {row[0]: self._state(row) for row in found}

    def save(self, connection: Connection, states: Sequence[Any]) -> None:
        """Write *states* whole, new ones and known ones alike."""
        writers = self._writers
        self._upsert.run(
            connection,
            [
                [getattr(state, name) if write is None else write(getattr(state, name)) for name, write in writers]
                for state in states
            ],
        )

    def browse(
        self, connection: Connection, filters: dict[str, Any], after: str | None, limit: int, newest_first: bool
    ) -> list[Any]:
        """Return up to *limit* states beyond the key *after*, in the order of the key."""
        key = _quoted(self.key_name)
        conditions = [f"{_quoted(name)} = ?" for name in filters]
        values = list(filters.values())
        if after is not None:
            conditions.append(f"{key} {'<' if newest_first else '>'} ?")
            values.append(after)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        order = f" ORDER BY {key} {'DESC' if newest_first else 'ASC'} LIMIT ?"
        found = connection.exec_driver_sql(self._select + where + order, (*values, limit))
        return [self._state(row) for row in found]

    def _state(self, row: Sequence[Any]) -> Any:
        return self.cls(**{
            name: value if read is None or value is None else read(value)
            for (name, read), value in zip(self._readers, row, strict=True)
        })


Codec = tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]


def _codec(converter: Converter, hint: Any, column_type: Any) -> Codec:
    """Return how a value of type *hint* is written and read; None where it is stored as it is."""
    if isinstance(column_type, JSON):
        structure = converter.get_structure_hook(hint)
        unstructure = converter.get_unstructure_hook(hint)
        if get_args(hint)[0] is not None and attrs.has(get_args(hint)[0]):
            return (
                lambda value: orjson.dumps(unstructure(value)).decode(),
                lambda text: structure(orjson.loads(text), hint),
            )
        return lambda value: orjson.dumps(value).decode(), lambda text: tuple(orjson.loads(text))
    plain = next((arg for arg in get_args(hint) if arg is not type(None)), hint)
    if plain is datetime:
        return lambda moment: moment.isoformat(timespec="microseconds"), datetime.fromisoformat
    if plain is bool:
        return None, bool
    if isinstance(plain, type) and issubclass(plain, Enum):
        members = {member.value: member for member in plain}
        return lambda member: member.value, members.__getitem__
    return None, None


def _quoted(name: str) -> str:
    return _IDENTIFIERS.quote(name)
