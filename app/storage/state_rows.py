"""
States and rows: how an attrs class becomes a row of its table and comes back.

Everything is prepared once per class. Rows go in many to a statement; `app.storage.sql.dialect` says how.
"""

from __future__ import annotations

__all__ = ["StateMapper", "to_db_timestamp"]

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from enum import Enum
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import Any, get_args, get_type_hints

import attrs
import orjson
from cattrs import Converter
from sqlalchemy import JSON, Connection, Table, UniqueConstraint

from app.storage.sql.dialect import Dialect


class StateMapper:
    """The rows of one state class."""

    def __init__(self, cls: type, table: Table, dialect: Dialect) -> None:
        fields = attrs.fields(cls)
        names = [field.name for field in fields]
        if names != [column.name for column in table.columns]:
            raise TypeError(f"{cls.__name__} and {table.name} do not have the same columns in the same order")
        if not cls.__dictoffset__:
            raise TypeError(f"{cls.__name__} has slots; make it @frozen(kw_only=True, slots=False)")
        if any(index.unique for index in table.indexes) or any(isinstance(c, UniqueConstraint) for c in table.constraints):
            raise TypeError(f"in {table.name} more than the key is unique; a row that is replaced could take another along")
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

        key = _quoted(names[0])
        # One row of JSON for all that is found: the driver gives the interpreter's lock away at each row that it fetches,
        # and a busy event loop would let it wait for it each time.
        self._text = dialect.text
        self._shown = dialect.json_rows(list(table.columns))
        wanted = f"SELECT * FROM {table.name} WHERE {key} {{keys}}"
        self._insert = dialect.insert(table, names) if dialect.is_shared else None
        self._replace = dialect.replace(table, names)
        self._load = dialect.by_keys(f"SELECT {self._shown} FROM {table.name} WHERE {key} {{keys}}")
        self._lock = self._load
        if dialect.locking:
            self._lock = dialect.by_keys(
                f"SELECT {self._shown} FROM ({wanted} ORDER BY {key}{dialect.locking}) AS found"
            )

    def load(self, connection: Connection, keys: Sequence[str]) -> dict[str, Any]:
        """Return the states under *keys*, those that there are, by key."""
        return self._states(self._load.run(connection, [(key,) for key in keys]))

    def lock(self, connection: Connection, keys: Sequence[str]) -> dict[str, Any]:
        """Return them, and let nobody else change them until the transaction ends."""
        return self._states(self._lock.run(connection, [(key,) for key in keys]))

    def save(self, connection: Connection, states: Sequence[Any], new: Collection[str] = ()) -> None:
        """
        Write *states* whole, known ones and those under the keys *new* alike.

        On a shared database a new one that somebody else has written meanwhile raises instead of being written over.
        """
        if self._insert is None:
            self._replace.run(connection, [self._row(state) for state in states])
            return
        rows = sorted((self._row(state) for state in states), key=itemgetter(0))
        self._insert.run(connection, [row for row in rows if row[0] in new])
        self._replace.run(connection, [row for row in rows if row[0] not in new])

    def list_page(
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
        text = self._text(f"SELECT {self._shown} FROM (SELECT * FROM {self.table.name}{where}{order}) AS found")
        found: str = connection.exec_driver_sql(text, (*values, limit)).scalar_one()
        return [self._state(row) for row in orjson.loads(found)]

    def _states(self, found: Sequence[Any]) -> dict[str, Any]:
        return {row[0]: self._state(row) for (text,) in found for row in orjson.loads(text)}

    def _row(self, state: Any) -> list[Any]:
        row = list(self._values(state))
        for at, write in self._writers:
            if row[at] is not None:
                row[at] = write(row[at])
        return row

    def _state(self, row: Sequence[Any]) -> Any:
        # As `modules.module.evolve` does: whatever is in the table has been through the constructor.
        state: Any = object.__new__(self.cls)
        members = state.__dict__
        members.update(zip(self._names, row, strict=True))
        for name, read in self._readers:
            if members[name] is not None:
                members[name] = read(members[name])
        return state


Codec = tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]


def _codec(converter: Converter, hint: Any, column_type: Any) -> Codec:
    """Return how a value of type *hint* is written and read; None where it is stored as it is."""
    if isinstance(column_type, JSON):
        structure = converter.get_structure_hook(hint)
        unstructure = converter.get_unstructure_hook(hint)
        if get_args(hint)[0] is not None and attrs.has(get_args(hint)[0]):
            # An order is written several times with the same lines.
            return (
                lru_cache(1024)(lambda value: orjson.dumps(unstructure(value)).decode()),
                lambda found: structure(found, hint),
            )
        return lambda value: orjson.dumps(value).decode(), tuple
    plain = next((arg for arg in get_args(hint) if arg is not type(None)), hint)
    if plain is datetime:
        return to_db_timestamp, _moment
    if plain is bool:
        return None, bool
    if isinstance(plain, type) and issubclass(plain, Enum):
        members = {member.value: member for member in plain}
        return attrgetter("_value_"), members.__getitem__  # what .value returns, without a descriptor in between
    return None, None


@lru_cache(4096)
def to_db_timestamp(moment: datetime) -> str:
    """Return *moment* as the database keeps it: all of one length, so that they compare as the moments do."""
    return moment.isoformat(timespec="microseconds")


_moment = lru_cache(4096)(datetime.fromisoformat)


def _quoted(name: str) -> str:
    return f'"{name}"'
