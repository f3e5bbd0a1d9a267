"""
Map the states of a module to rows of its tables, and cache those that were written last.

One attrs class has one table, with one column for each field. Codecs and statements are prepared once per class. A
statement takes many rows; `app.storage.sql.dialect` describes how.
"""

from __future__ import annotations

__all__ = ["STATES_MAX", "Row", "StateCache", "StateMapper", "to_db_timestamp"]

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from functools import cache, lru_cache
from operator import attrgetter, itemgetter
from typing import Any, get_args, get_origin, get_type_hints

import attrs
import orjson
from cattrs import Converter
from sqlalchemy import JSON, Connection, Table, UniqueConstraint

from app.storage.search.list_query import find_rows
from app.storage.sql.dialect import CACHE_GENERATION, Dialect
from modules.filters import Condition

STATES_MAX = 2048
"""
States of one class in one half of the cache.

When the current half is full it becomes the previous one, and the previous one is dropped whole: to evict states one by
one is slower.
"""

Row = Sequence[Any]
"""A row as a select returns it, in JSON's types: the values of a table's columns, in their order."""

_Convert = Callable[[Any], Any]
_Codec = tuple[_Convert | None, _Convert | None]
"""How a value is encoded for the database and decoded; None where it is stored as it is."""


class StateMapper:
    """
    Reads and writes the states of one class *cls* in *table*, whose first column is the key.

    Raises:
        TypeError: Class and table do not fit together.
    """

    def __init__(self, cls: type, table: Table, dialect: Dialect) -> None:
        _check(cls, table)
        self.cls = cls
        self.table = table
        self.names = names = [column.name for column in table.columns]
        self.key_name = names[0]
        self.key_of: Callable[[Any], str] = attrgetter(names[0])
        self._values_of = itemgetter(*names)
        codecs = _codecs(cls, table)
        self._encoders = [(at, encode) for at, (encode, _) in enumerate(codecs) if encode is not None]
        self._decoders = [(name, decode) for name, (_, decode) in zip(names, codecs, strict=True) if decode is not None]
        self._prepare_statements(dialect)

    def _prepare_statements(self, dialect: Dialect) -> None:
        table, key = self.table, _quoted(self.key_name)
        self._dialect = dialect
        self._to_driver_sql = dialect.to_driver_sql
        # All rows are selected as one JSON text: the driver releases the interpreter's lock for each row that it fetches,
        # and a busy event loop would make it wait each time.
        self._json_rows = dialect.json_rows_sql(list(table.columns))
        self._insert = dialect.insert(table, self.names) if dialect.is_shared else None
        self._replace = dialect.replace(table, self.names)
        self._select = dialect.by_keys(f"SELECT {self._json_rows} FROM {table.name} WHERE {key} {{keys}}")
        self._select_for_update = self._select
        if dialect.for_update:
            rows = f"SELECT * FROM {table.name} WHERE {key} {{keys}} ORDER BY {key}{dialect.for_update}"
            self._select_for_update = dialect.by_keys(f"SELECT {self._json_rows} FROM ({rows}) AS found")
        unlocked = f"SELECT * FROM {table.name} WHERE {key} {{keys}}{dialect.skip_locked}"
        self._select_unlocked = dialect.by_keys(f"SELECT {self._json_rows} FROM ({unlocked}) AS found")
        between = f"SELECT * FROM {table.name} WHERE {key} > ? AND {key} < ? ORDER BY {key} LIMIT ?"
        self._select_between = dialect.to_driver_sql(f"SELECT {self._json_rows} FROM ({between}) AS found")
        self._delete = dialect.by_keys(f"DELETE FROM {table.name} WHERE {key} {{keys}}")

    def load(self, connection: Connection, keys: Sequence[str]) -> dict[str, Any]:
        """Return the states that exist under *keys*, by key."""
        return self._states(self._select.fetch(connection, [(key,) for key in keys])())

    def lock(self, connection: Connection, keys: Sequence[str]) -> Callable[[], dict[str, Any]]:
        """
        Lock the rows of *keys* until the transaction ends; return a function that returns their states by key.

        See `app.storage.sql.dialect.Statement.fetch`.
        """
        rows = self._select_for_update.fetch(connection, [(key,) for key in keys])
        return lambda: self._states(rows())

    def save(self, connection: Connection, states: Sequence[Any], new_keys: Collection[str] = ()) -> None:
        """
        Write *states* whole, whether they exist or not.

        On a shared database a state under one of *new_keys* that another process has inserted meanwhile raises a conflict
        and is not overwritten.
        """
        if self._insert is None:
            self._replace.execute(connection, [self._row(state) for state in states])
            return
        rows = sorted((self._row(state) for state in states), key=itemgetter(0))
        self._insert.execute(connection, [row for row in rows if row[0] in new_keys])
        self._replace.execute(connection, [row for row in rows if row[0] not in new_keys])

    def rows_between(self, connection: Connection, after: str, below: str, limit: int) -> list[Row]:
        """Return up to *limit* rows with keys above *after* and under *below*, in the order of the keys."""
        found: str = connection.exec_driver_sql(self._select_between, (after, below, limit)).scalar_one()
        rows: list[Row] = orjson.loads(found)
        return rows

    def lock_unlocked(self, connection: Connection, keys: Sequence[str]) -> list[Row]:
        """Return the rows that exist under *keys*, and lock them; leave out those that another transaction has locked."""
        return [row for (text,) in self._select_unlocked.fetch(connection, [(key,) for key in keys])() for row in orjson.loads(text)]

    def delete(self, connection: Connection, keys: Sequence[str]) -> None:
        """Delete the rows under *keys*."""
        self._delete.execute(connection, [(key,) for key in keys])

    def list_page(
        self, connection: Connection, filters: dict[str, Any], after: str | None, limit: int, newest_first: bool
    ) -> list[Any]:
        """
        Return up to *limit* states in the order of their keys, which follow the key *after*.

        *filters* are required values by field name. With *newest_first* the order is descending.
        """
        key = _quoted(self.key_name)
        conditions = [f"{_quoted(name)} = ?" for name in filters]
        values = list(filters.values())
        if after is not None:
            conditions.append(f"{key} {'<' if newest_first else '>'} ?")
            values.append(after)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        order = f" ORDER BY {key} {'DESC' if newest_first else 'ASC'} LIMIT ?"
        sql = f"SELECT {self._json_rows} FROM (SELECT * FROM {self.table.name}{where}{order}) AS found"
        found: str = connection.exec_driver_sql(self._to_driver_sql(sql), (*values, limit)).scalar_one()
        return [self.state(row) for row in orjson.loads(found)]

    def search(
        self, connection: Connection, conditions: Sequence[Condition], after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[Any], str | None]:
        """
        Return up to *limit* states that meet all *conditions*, in the order of their keys, beyond the key *after*.

        The second result is the key at which the search stopped before the end; see `app.storage.search.list_query`.
        """
        rows, examined_to = find_rows(
            connection, self._dialect, self._json_rows, self.table.name, self.key_name, conditions, after, limit, newest_first
        )
        return [self.state(row) for row in rows], examined_to

    def _states(self, found: Sequence[Any]) -> dict[str, Any]:
        return {row[0]: self.state(row) for (text,) in found for row in orjson.loads(text)}

    def _row(self, state: Any) -> list[Any]:
        row = list(self._values_of(state.__dict__))  # without the look-up of each name in the class
        for at, encode in self._encoders:
            if row[at] is not None:
                row[at] = encode(row[at])
        return row

    def to_document(self, state: Any) -> dict[str, Any]:
        """Return *state* as JSON values by column, the same from each kind of database."""
        columns = zip(self.table.columns, self._row(state), strict=True)
        return {str(column.name): _parsed(value) if isinstance(column.type, JSON) else value for column, value in columns}

    def from_document(self, document: Mapping[str, Any]) -> Any:
        """
        Return the state in *document*, which `to_document` has made, of this release or of an older one.

        Raises:
            ValueError: A column without a default is missing, or a value is none of its column.
        """
        missing = [each for each in attrs.fields(self.cls) if each.name not in document]
        if lacking := [each.name for each in missing if each.default is attrs.NOTHING]:
            raise ValueError(f"{self.cls.__name__} has no {', '.join(lacking)}")
        try:
            state = self.state([document.get(name) for name in self.names])
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{self.cls.__name__} has a value that is none: {error}") from error
        state.__dict__.update({each.name: each.default for each in missing})
        return state

    def state(self, row: Row) -> Any:
        """Return the state in *row*."""
        # Built without the constructor, as `modules.module.evolve` does: each stored state has passed it before.
        state: Any = object.__new__(self.cls)
        members = state.__dict__
        members.update(zip(self.names, row, strict=True))
        for name, decode in self._decoders:
            if members[name] is not None:
                members[name] = decode(members[name])
        return state


class StateCache:
    """
    The states that one module has written last, for a database that only this process writes.

    An order is written half a dozen times within a fraction of a second, so the states written last stay here and only
    the others are read. The cache is used within the writer's transactions only. It equals the database as long as no
    transaction was rolled back and no other process (an operator's shell, for example) has written. SQLite counts foreign
    writes (``PRAGMA data_version``), and each transaction checks the count as it begins.

    The cache is not needed for correctness. Over ten alternating pairs of load tests on two cores it gave 7 % more orders
    a second (median); other hardware or another load may give less.
    """

    def __init__(self, mappers: Mapping[type, StateMapper]) -> None:
        self._mappers = mappers
        self._current: dict[type, dict[str, Any]] = {cls: {} for cls in mappers}
        self._previous: dict[type, dict[str, Any]] = {cls: {} for cls in mappers}
        self._generation: object = None

    def load(self, connection: Connection, keys: Mapping[type, Iterable[str]]) -> dict[type, dict[str, Any]]:
        """Return the states that exist under *keys*, by class and key; read those that are not cached."""
        self._clear_if_stale(connection)
        states: dict[type, dict[str, Any]] = {}
        for cls, wanted in keys.items():
            current, previous = self._current[cls], self._previous[cls]
            found = states[cls] = {}
            missing = []
            for key in wanted:
                state = current.get(key) or previous.get(key)
                if state is None:
                    missing.append(key)
                else:
                    found[key] = state
            if missing:
                found.update(self._mappers[cls].load(connection, missing))
        return states

    def put(self, cls: type, states: Mapping[str, Any]) -> None:
        """Cache *states*, by key, which the current transaction has written."""
        current = self._current[cls]
        current.update(states)
        if len(current) > STATES_MAX:
            self._previous[cls], self._current[cls] = current, {}

    def drop(self, cls: type, keys: Iterable[str]) -> None:
        """Forget the states under *keys*, which the current transaction has deleted."""
        for key in keys:
            self._current[cls].pop(key, None)
            self._previous[cls].pop(key, None)

    def _clear_if_stale(self, connection: Connection) -> None:
        generation = connection.info.get(CACHE_GENERATION)
        if generation is not self._generation:
            self._generation = generation
            for states in (*self._current.values(), *self._previous.values()):
                states.clear()


def _check(cls: type, table: Table) -> None:
    if [field.name for field in attrs.fields(cls)] != [column.name for column in table.columns]:
        raise TypeError(f"{cls.__name__} and {table.name} do not have the same columns in the same order")
    if not cls.__dictoffset__:
        raise TypeError(f"{cls.__name__} has slots; declare it @frozen(kw_only=True, slots=False)")
    if any(index.unique for index in table.indexes) or any(isinstance(c, UniqueConstraint) for c in table.constraints):
        raise TypeError(f"{table.name} has more than one unique key; replacing one row could delete another")


@cache
def _codecs(cls: type, table: Table) -> tuple[_Codec, ...]:
    """Return the codecs of the columns of *table*, in their order."""
    hints = get_type_hints(cls)
    converter = Converter(detailed_validation=False)
    return tuple(_codec(converter, hints[column.name], column.type) for column in table.columns)


def _codec(converter: Converter, hint: Any, column_type: Any) -> _Codec:
    """Return the codec of a field of type *hint* in a column of type *column_type*."""
    if isinstance(column_type, JSON):
        member = get_args(hint)[0]
        if not attrs.has(member):
            return lambda value: orjson.dumps(value).decode(), tuple
        structure, unstructure = converter.get_structure_hook(hint), converter.get_unstructure_hook(member)
        if get_origin(hint) is tuple:
            # A list is quicker than what cattrs does, and than a cache, whose look-up hashes every member.
            encode = lambda value: orjson.dumps([unstructure(each) for each in value]).decode()  # noqa: E731
        else:
            encode = lambda value: orjson.dumps(unstructure(value)).decode()  # noqa: E731
        return encode, lambda found: structure(found, hint)
    plain = next((arg for arg in get_args(hint) if arg is not type(None)), hint)
    if plain is datetime:
        return to_db_timestamp, _from_db_timestamp
    if plain is bool:
        return None, bool
    if isinstance(plain, type) and issubclass(plain, Enum):
        members = {member.value: member for member in plain}
        return attrgetter("_value_"), members.__getitem__  # what .value returns, without a descriptor in between
    return None, None


def _parsed(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)


@lru_cache(4096)
def to_db_timestamp(moment: datetime) -> str:
    """Return *moment* as the database stores it: ISO 8601 with microseconds, so that texts in UTC sort by time."""
    return moment.isoformat(timespec="microseconds")


_from_db_timestamp = lru_cache(4096)(datetime.fromisoformat)


def _quoted(name: str) -> str:
    return f'"{name}"'
