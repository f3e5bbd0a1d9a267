"""
Read one page of a list of states, whatever its filters are, in a bounded time.

The search walks the states in the order of their keys, so it can stop as soon as the page is full. An equality filter
with an index restricts the walk to the rows that match it. Other filters reject rows on the way, and no index can bound
how many: a walk therefore examines up to `EXAMINED_MAX` rows. A page that ends there may be shorter than its limit, or
empty, and returns the key from which the next page continues.

A prefix is looked up in the indexes of its columns first. If few rows have it (`CANDIDATES_MAX`), those are read and
sorted. If many have it, a walk finds them soon.
"""

from __future__ import annotations

__all__ = ["CANDIDATES_MAX", "EXAMINED_MAX", "Rows", "find_rows"]

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson
from attrs import frozen
from sqlalchemy import Connection

from app.storage.sql.dialect import Dialect
from bus.ids import id_lower_bound
from modules.filters import Condition, Match

EXAMINED_MAX = 10_000
CANDIDATES_MAX = 2_000

KEY_AHEAD_MAX = timedelta(seconds=1)
"""How much later than its state the time in a key may be: the clock may have been set back in between."""

KEY_BEHIND_MAX = timedelta(seconds=30)
"""How much earlier than its state the time in a key may be: a request waits for its transaction."""

_OPERATORS = {Match.AT_LEAST: ">=", Match.AT_MOST: "<=", Match.BELOW: "<"}
_LAST_CHARACTER = 0x10FFFF


class Rows(NamedTuple):
    """The rows of one page, and the key at which the search stopped before the end of the list; None if it did not."""

    rows: list[list[Any]]
    examined_to: str | None


class _Sql(NamedTuple):
    """A condition in SQL, with the values of its placeholders."""

    text: str
    values: tuple[Any, ...] = ()


@frozen
class _Walk:
    """The order and the range of the keys that a search visits."""

    table: str
    key: str
    newest_first: bool
    range: tuple[_Sql, ...]

    @property
    def order(self) -> str:
        return f"ORDER BY {self.key} {'DESC' if self.newest_first else 'ASC'}"

    def beyond(self, key: str, *, or_equal: bool = False) -> _Sql:
        """Return the condition that a row comes later in this order than *key*, or is it."""
        return _Sql(f"{self.key} {'<' if self.newest_first else '>'}{'=' if or_equal else ''} ?", (key,))

    def up_to(self, key: str) -> _Sql:
        """Return the condition that a row comes earlier in this order than *key*, or is it."""
        return _Sql(f"{self.key} {'>=' if self.newest_first else '<='} ?", (key,))


def find_rows(
    connection: Connection,
    dialect: Dialect,
    select: str,
    table: str,
    key_name: str,
    conditions: Sequence[Condition],
    after: str | None,
    limit: int,
    newest_first: bool,
) -> Rows:
    """
    Return up to *limit* rows of *table* that meet all *conditions*, in the order of their keys, beyond the key *after*.

    *select* is an expression that aggregates rows into a JSON array (`Dialect.json_rows_sql`).
    """
    key = _quoted(key_name)
    range = [bound for condition in conditions for bound in _key_bounds(key, condition)]
    walk = _Walk(table, key, newest_first, tuple(range))
    if after is not None:
        walk = _Walk(table, key, newest_first, (*range, walk.beyond(after)))
    driver, branches = _branches(connection, dialect, walk, conditions)
    others = [each for each in conditions if each is not driver and not _is_key_range(each, key_name)]
    filters = [_filter(condition, dialect) for condition in others]
    boundary = None
    if any(not condition.filter.follows_key for condition in others) and not _is_prefix(driver):
        boundary = _boundary(connection, dialect, walk, branches)
    if boundary is not None:
        filters.append(walk.up_to(boundary))
    selects = [_and((branch, *walk.range, *filters)) for branch in branches]
    parts = [f"SELECT * FROM (SELECT * FROM {table}{where.text} {walk.order} LIMIT ?) AS part" for where in selects]
    inner = parts[0] if len(parts) == 1 else f"SELECT * FROM ({' UNION ALL '.join(parts)}) AS parts {walk.order} LIMIT ?"
    values = [value for where in selects for value in (*where.values, limit)]
    if len(parts) > 1:
        values.append(limit)
    sql = dialect.to_driver_sql(f"SELECT {select} FROM ({inner}) AS found")
    found: str = connection.exec_driver_sql(sql, tuple(values)).scalar_one()
    rows: list[list[Any]] = orjson.loads(found)
    return Rows(rows, boundary if len(rows) < limit else None)


def _branches(
    connection: Connection, dialect: Dialect, walk: _Walk, conditions: Sequence[Condition]
) -> tuple[Condition | None, list[_Sql]]:
    """Return the condition that an index serves, if any, and one condition in SQL for each walk through that index."""
    for condition in conditions:
        if _is_prefix(condition) and (candidates := _candidates(connection, dialect, walk, condition)) is not None:
            return condition, [candidates]
    for condition in conditions:
        if condition.filter.is_indexed:
            (column,) = condition.columns
            if condition.filter.match is Match.PRESENT:
                return condition, [_Sql(f"{_quoted(column)} IS NOT NULL")]
            return condition, [_Sql(f"{_quoted(column)} = ?", (value,)) for value in dict.fromkeys(condition.values)]
    return None, [_Sql("")]


def _is_key_range(condition: Condition, key_name: str) -> bool:
    """Return whether *condition* is about the key alone, so that the bounds of the walk express all of it."""
    return condition.filter.follows_key and condition.columns == (key_name,)


def _is_prefix(condition: Condition | None) -> bool:
    return condition is not None and condition.filter.match is Match.BEGINS_WITH


def _candidates(connection: Connection, dialect: Dialect, walk: _Walk, condition: Condition) -> _Sql | None:
    """Return the condition that a key is one of the few whose rows have the prefix; None if there are many."""
    ranges = [_begins_with(_quoted(column), value) for column in condition.columns for value in condition.values]
    for range in ranges:
        counted = f"SELECT count(*) FROM (SELECT 1 FROM {walk.table} WHERE {range.text} LIMIT ?) AS found"
        sql, values = dialect.to_driver_sql(counted), (*range.values, CANDIDATES_MAX + 1)
        if connection.exec_driver_sql(sql, values).scalar_one() > CANDIDATES_MAX:
            return None
    keys = " UNION ".join(f"SELECT {walk.key} FROM {walk.table} WHERE {range.text}" for range in ranges)
    return _Sql(f"{walk.key} IN ({keys})", tuple(value for range in ranges for value in range.values))


def _boundary(connection: Connection, dialect: Dialect, walk: _Walk, branches: Sequence[_Sql]) -> str | None:
    """Return the key at which the first of the walks has examined `EXAMINED_MAX` rows; None if none has as many."""
    found: list[str] = []
    for branch in branches:
        where = _and((branch, *walk.range))
        sql = f"SELECT {walk.key} FROM {walk.table}{where.text} {walk.order} LIMIT 1 OFFSET {EXAMINED_MAX - 1}"
        found += connection.exec_driver_sql(dialect.to_driver_sql(sql), where.values).scalars()
    if not found:
        return None
    return max(found) if walk.newest_first else min(found)


def _filter(condition: Condition, dialect: Dialect) -> _Sql:
    """Return *condition* in SQL, for a walk through another index."""
    match, values = condition.filter.match, tuple(_value(value) for value in condition.values)
    columns = [_quoted(column) for column in condition.columns]
    if match is Match.PRESENT:
        return _Sql(f"{columns[0]} IS NOT NULL")
    if match is Match.EQUALS:
        column = _unindexed(columns[0]) if condition.filter.is_indexed else columns[0]
        return _Sql(f"{column} IN ({', '.join('?' * len(values))})", values)
    if match is Match.BEGINS_WITH:
        return _or(_begins_with(_unindexed(column), value) for column in columns for value in values)
    if match is Match.REMAINDER_AT_MOST:
        return _or(_Sql(f"{columns[0]} - {columns[1]} <= ?", (value,)) for value in values)
    if match is Match.HAS_MEMBER:
        # Members are stored without spaces, and quotes within a text are escaped.
        name = condition.filter.member
        texts = [orjson.dumps({name: value}).decode()[1:-1] for value in values]
        return _or(_Sql(f"{dialect.position_sql(columns[0])} > 0", (text,)) for text in texts)
    return _or(_Sql(f"{columns[0]} {_OPERATORS[match]} ?", (value,)) for value in values)


def _key_bounds(key: str, condition: Condition) -> Iterable[_Sql]:
    """Yield the bounds of the keys of rows that meet *condition*, if it is about the time in the key."""
    if condition.filter.follows_key:
        (moment,) = condition.values
        is_exact = _quoted(condition.columns[0]) == key
        behind, ahead = (timedelta(), timedelta()) if is_exact else (KEY_BEHIND_MAX, KEY_AHEAD_MAX)
        if condition.filter.match is Match.AT_LEAST:
            yield _Sql(f"{key} >= ?", (id_lower_bound(moment - behind),))
        else:
            yield _Sql(f"{key} < ?", (id_lower_bound(moment + ahead),))


def _unindexed(column: str) -> str:
    """Return an expression equal to *column*, so that the database walks the index that was chosen here and no other."""
    return f"({column} || '')"


def _begins_with(expression: str, prefix: str) -> _Sql:
    end = _successor(prefix)
    if end is None:
        return _Sql(f"{expression} >= ?", (prefix,))
    return _Sql(f"({expression} >= ? AND {expression} < ?)", (prefix, end))


def _successor(prefix: str) -> str | None:
    """Return the smallest text that is greater than every text that begins with *prefix*; None if there is none."""
    while prefix and ord(prefix[-1]) == _LAST_CHARACTER:
        prefix = prefix[:-1]
    if not prefix:
        return None
    following = ord(prefix[-1]) + 1
    return prefix[:-1] + chr(0xE000 if 0xD800 <= following < 0xE000 else following)  # surrogates are not characters


def _value(value: Any) -> Any:
    return value.astimezone(UTC).isoformat(timespec="microseconds") if isinstance(value, datetime) else value


def _and(conditions: Iterable[_Sql]) -> _Sql:
    return _joined(" AND ", conditions, " WHERE ", "")


def _or(conditions: Iterable[_Sql]) -> _Sql:
    return _joined(" OR ", conditions, "(", ")")


def _joined(operator: str, conditions: Iterable[_Sql], before: str, behind: str) -> _Sql:
    present = [condition for condition in conditions if condition.text]
    if not present:
        return _Sql("")
    text = f"{before}{operator.join(condition.text for condition in present)}{behind}"
    return _Sql(text, tuple(value for condition in present for value in condition.values))


def _quoted(name: str) -> str:
    return f'"{name}"'
