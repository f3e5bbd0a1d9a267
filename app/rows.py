"""
States and rows: how an attrs class becomes a row of its table and comes back.

Everything is prepared once per class. Rows go in many to a statement, and a statement has one of a few sizes, so that
each text is compiled once and the database's own statement cache knows it from then on; what is missing to the next size
is filled up with the last row, which every statement here takes twice as well as once.
"""

from __future__ import annotations

__all__ = ["Rows", "Statement", "filled", "instant"]

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from enum import Enum
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any, get_args, get_type_hints

import attrs
import orjson
from cattrs import Converter
from sqlalchemy import JSON, Connection, Table
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Rows of one statement; SQLite takes 32,766 values in one."""

_IDENTIFIERS = sqlite_dialect().identifier_preparer


class Statement:
    """
    One statement over many rows, for any number of them.

    *text* says the statement for a given number of rows. It must not mind a row that comes twice.
    """

    def __init__(self, text: Callable[[int], str]) -> None:
        self._texts = {size: text(size) for size in SIZES}

    def run(self, connection: Connection, rows: Sequence[Sequence[Any]], before: tuple[Any, ...] = ()) -> list[Any]:
        """Run it for *rows*, a few times if need be; *before* are values that come first. Return all that it returns."""
        found: list[Any] = []
        # Straight to the driver: these texts and values need nothing of what SQLAlchemy does for a statement.
        cursor = connection.connection.cursor()
        for part in filled(rows):
            cursor.execute(self._texts[len(part)], before + tuple(chain.from_iterable(part)))
            if cursor.description is not None:
                found += cursor.fetchall()
        return found


def filled(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Cut *rows* into parts, each filled up to one of `SIZES` with its last row."""
    most = SIZES[-1]
    for start in range(0, len(rows), most):
        part = rows[start : start + most]
        size = SIZES[bisect_left(SIZES, len(part))]
        yield part if size == len(part) else [*part, *[part[-1]] * (size - len(part))]


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
        self._names = names
        self._values = attrgetter(*names)
        self.key_of: Callable[[Any], str] = attrgetter(names[0])
        self._writers = [(at, write) for at, (write, _) in enumerate(codecs) if write is not None]
        self._readers = [(name, read) for name, (_, read) in zip(names, codecs, strict=True) if read is not None]

        columns = ", ".join(_quoted(name) for name in names)
        row = f"({', '.join('?' for _ in names)})"
        changes = ", ".join(f"{_quoted(name)} = excluded.{_quoted(name)}" for name in names[1:])
        key = _quoted(names[0])
        # One row of JSON for all that is found: the driver gives the interpreter's lock away at each row that it fetches,
        # and a busy event loop would let it wait for it each time.
        shown = ", ".join(
            f"json({_quoted(column.name)})" if isinstance(column.type, JSON) else _quoted(column.name)
            for column in table.columns
        )
        self._select = f"SELECT json_group_array(json_array({shown})) FROM"
        self._upsert = Statement(
            lambda size: (
                f"INSERT INTO {table.name} ({columns}) VALUES {', '.join([row] * size)}"
                f" ON CONFLICT ({key}) DO UPDATE SET {changes}"
            )
        )
        self._load = Statement(lambda size: f"{self._select} {table.name} WHERE {key} IN ({', '.join('?' * size)})")

    def load(self, connection: Connection, keys: Sequence[str]) -> dict[str, Any]:
        """Return the states under *keys*, those that there are, by key."""
        found = self._load.run(connection, [(key,) for key in keys])
        return {row[0]: self._state(row) for part in found for row in orjson.loads(part[0])}

    def save(self, connection: Connection, states: Sequence[Any]) -> None:
        """Write *states* whole, new ones and known ones alike."""
        self._upsert.run(connection, [self._row(state) for state in states])

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
        text = f"{self._select} (SELECT * FROM {self.table.name}{where}{order})"
        found: str = connection.exec_driver_sql(text, (*values, limit)).scalar_one()
        return [self._state(row) for row in orjson.loads(found)]

    def _row(self, state: Any) -> list[Any]:
        row = list(self._values(state))
        for at, write in self._writers:
            if row[at] is not None:
                row[at] = write(row[at])
        return row

    def _state(self, row: Sequence[Any]) -> Any:
        fields = dict(zip(self._names, row, strict=True))
        for name, read in self._readers:
            if fields[name] is not None:
                fields[name] = read(fields[name])
        return self.cls(**fields)


Codec = tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]


def _codec(converter: Converter, hint: Any, column_type: Any) -> Codec:
    """Return how a value of type *hint* is written and read; None where it is stored as it is."""
    if isinstance(column_type, JSON):
        structure = converter.get_structure_hook(hint)
        unstructure = converter.get_unstructure_hook(hint)
        if get_args(hint)[0] is not None and attrs.has(get_args(hint)[0]):
            return (
                lambda value: orjson.dumps(unstructure(value)).decode(),
                lambda found: structure(found, hint),
            )
        return lambda value: orjson.dumps(value).decode(), tuple
    plain = next((arg for arg in get_args(hint) if arg is not type(None)), hint)
    if plain is datetime:
        return instant, _moment
    if plain is bool:
        return None, bool
    if isinstance(plain, type) and issubclass(plain, Enum):
        members = {member.value: member for member in plain}
        return lambda member: member.value, members.__getitem__
    return None, None


@lru_cache(4096)
def instant(moment: datetime) -> str:
    """Return *moment* as the database keeps it: all of one length, so that they compare as the moments do."""
    return moment.isoformat(timespec="microseconds")


_moment = lru_cache(4096)(datetime.fromisoformat)


def _quoted(name: str) -> str:
    return _IDENTIFIERS.quote(name)
