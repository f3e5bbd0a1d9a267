"""
Filters of a list: query parameters, and the condition on a state's columns that each means.

The web layer reads the values of a filter from a query, and the storage layer writes the condition in SQL.
"""

from __future__ import annotations

__all__ = ["Condition", "Filter", "Match", "created_between"]

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any

from attrs import field, frozen


class Match(Enum):
    """How the column of a state compares with the value of a filter."""

    EQUALS = auto()
    AT_LEAST = auto()
    AT_MOST = auto()
    BELOW = auto()
    BEGINS_WITH = auto()
    """One of the columns begins with the value. Each has an index; its collation is "C" (`modules.tables.key_type`)."""
    HAS_MEMBER = auto()
    """The column is a JSON array of objects; the member `Filter.member` of one of them equals the value."""
    REMAINDER_AT_MOST = auto()
    """The first column less the second is at most the value."""
    PRESENT = auto()
    """The column is not null. A partial index has the keys of these rows. The only value of the filter is ``true``."""


@frozen
class Filter:
    """A query parameter that restricts a list."""

    name: str
    schema: Mapping[str, Any]
    """
    JSON Schema of one value. Its type is string or integer; a string with the format date-time becomes a datetime.
    """
    description: str = ""
    match: Match = Match.EQUALS
    columns: tuple[str, ...] = field(factory=tuple)
    """The compared columns; by default the one that has the filter's name."""
    takes_list: bool = False
    """True if the parameter may hold several values, separated by commas; a state has to match one of them."""
    is_indexed: bool = False
    """True for EQUALS and PRESENT if an index on the column and the key exists. Declare the most selective filter first."""
    follows_key: bool = False
    """
    True if the column is the time of which the key, a UUIDv7, holds the milliseconds: the key then bounds the search.

    The column may be the key itself: then its time is compared.
    """
    member: str = ""
    keeps: Callable[[Any], bool] | None = None
    """Decides about a state that the column lets through, where the column does not suffice to decide whether the state matches."""


@frozen
class Condition:
    """A filter and the value, or the alternative values, that a query gives it."""

    filter: Filter
    values: tuple[Any, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are compared."""
        return self.filter.columns or (self.filter.name,)

    def holds(self, state: Any) -> bool:
        """Return whether *state* meets the condition, as the search in the database decides it."""
        if self.filter.keeps is not None and not self.filter.keeps(state):
            return False
        found = [getattr(state, column) for column in self.columns]
        if self.filter.match is Match.REMAINDER_AT_MOST:
            return any(bool(found[0] - found[1] <= wanted) for wanted in self.values)
        return any(_compare(self.filter, value, wanted) for value in found if value is not None for wanted in self.values)


def _compare(filter: Filter, value: Any, wanted: Any) -> bool:
    if filter.follows_key and isinstance(value, str):  # the key itself, a UUIDv7
        value = datetime.fromtimestamp(int(value.replace("-", "")[:12], 16) / 1000, UTC)
    match filter.match:
        case Match.EQUALS:
            return bool(value == wanted)
        case Match.AT_LEAST:
            return bool(value >= wanted)
        case Match.AT_MOST:
            return bool(value <= wanted)
        case Match.BELOW:
            return bool(value < wanted)
        case Match.BEGINS_WITH:
            return str(value).startswith(wanted)
        case Match.PRESENT:
            return True
        case Match.HAS_MEMBER:
            return any(getattr(member, filter.member) == wanted for member in value)
        case Match.REMAINDER_AT_MOST:  # is about two columns
            raise AssertionError(filter.name)


def created_between(what: str, column: str) -> tuple[Filter, Filter]:
    """Return the filters ``created_after`` and ``created_before``; *what* was created at the time in *column* and in the key."""
    moment = {"type": "string", "format": "date-time", "maxLength": 40}
    return (
        Filter("created_after", moment, f"{what} at this time or later.", Match.AT_LEAST, (column,), follows_key=True),
        Filter("created_before", moment, f"{what} before this time.", Match.BELOW, (column,), follows_key=True),
    )
