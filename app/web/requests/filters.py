"""Read the filters of a list from a query: the values as their schemas describe them."""

from __future__ import annotations

__all__ = ["FilterReader"]

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from app.web.responses.problems import invalid_input
from bus.contracts.schemas import explain, validator
from bus.errors import SchemaViolation
from modules.filters import Condition, Filter

ALTERNATIVES_MAX = 10
"""Most values that one filter may list."""

_EARLIEST, _LATEST = datetime(1, 1, 3, tzinfo=UTC), datetime(9999, 12, 29, tzinfo=UTC)
"""An earlier or later moment counts as one of these: zones and clocks that differ need some room in the calendar."""

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})", re.ASCII)


class FilterReader:
    """Reads the values of *filters*."""

    def __init__(self, filters: Sequence[Filter]) -> None:
        self._filters = {filter.name: (filter, validator(filter.schema)) for filter in filters}
        self.names = frozenset(self._filters)

    def read(self, query: Mapping[str, str]) -> list[Condition]:
        """
        Return the conditions that *query* sets, in the order in which the filters were declared.

        Raises:
            ProblemError: 400, a value is not one that the filter's schema allows; ``errors`` lists those that are.
        """
        conditions: list[Condition] = []
        violations: list[SchemaViolation] = []
        for name, (filter, is_valid) in self._filters.items():
            if name not in query:
                continue
            texts = query[name].split(",") if filter.takes_list else [query[name]]
            values = [_parsed(text, filter.schema) for text in texts]
            found = [f"must list at most {ALTERNATIVES_MAX} values"] if len(values) > ALTERNATIVES_MAX else []
            for value in values[:ALTERNATIVES_MAX]:
                if not is_valid(value):
                    found += [violation.detail for violation in explain(filter.schema, value)]
            violations += [SchemaViolation(f"/{name}", detail) for detail in dict.fromkeys(found)]
            if not found:
                conditions.append(Condition(filter, tuple(_converted(value, filter.schema) for value in values)))
        if violations:
            raise invalid_input("invalid_query", "A filter has an invalid value; errors lists each with what is allowed.", violations)
        return conditions


def _parsed(text: str, schema: Mapping[str, Any]) -> Any:
    """Return *text* as a JSON value of the type that *schema* names, or as it is if it is none."""
    if schema.get("type") == "integer" and _INTEGER.fullmatch(text):
        return int(text)
    return text


def _converted(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return the valid *value*, or the moment that it names, within `_EARLIEST` and `_LATEST`."""
    if schema.get("format") != "date-time":
        return value
    # RFC 3339 allows a leap second and more digits than a datetime has.
    text = re.sub(r":60(?=[.Zz+-])", ":59", value)
    if text.startswith("0000"):  # a year of RFC 3339, and none of a datetime
        return _EARLIEST
    moment = datetime.fromisoformat(re.sub(r"(\.[0-9]{6})[0-9]+", r"\1", text.upper()))
    return min(max(moment, _EARLIEST), _LATEST).astimezone(UTC)
