"""The numbers of a report: the answers of all projections for one period."""

from __future__ import annotations

__all__ = ["ROWS_MAX", "Ask", "Report", "Section", "collect", "to_json"]

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from attrs import frozen

from app.analytics.errors import QueryRefused
from app.analytics.projections import statements
from app.analytics.projections.declaration import Projection
from app.analytics.query import Answer

ROWS_MAX = 1_000
"""Rows of one projection in a report: the newest ones."""

SUMS_MAX = 50
"""Rows of its sums: the largest ones, if the projection does not order them otherwise."""

Ask = Callable[[str, int], Answer]
"""Takes a SQL statement and a number of rows, and returns the answer with at most so many rows."""


@frozen
class Section:
    """One projection in a report."""

    projection: Projection
    rows: Answer
    """The windows of the period, the newest first."""
    sums: Answer | None

    @property
    def is_empty(self) -> bool:
        """True if nothing happened in the period."""
        return not self.rows.rows


@frozen
class Report:
    """The projections of a period."""

    since: datetime
    until: datetime
    taken_at: str | None
    """When events were last written to the file; None if there never were any."""
    newest_at: str | None
    """When the newest order in the file was placed; None if there is none."""
    sections: tuple[Section, ...]

    @property
    def is_empty(self) -> bool:
        """True if nothing happened in the period."""
        return all(section.is_empty for section in self.sections)


def collect(
    ask: Ask, projections: Mapping[str, Projection], *, since: datetime, until: datetime, names: Iterable[str] | None = None
) -> Report:
    """
    Query all *projections*, or those of *names*, from *since* to *until*.

    Every statement is answered for itself: if events are taken meanwhile, a later section may have an event that an
    earlier one lacks.

    Raises:
        BadProjection: A statement cannot be answered.
        QueryRefused: The file has no tables of events.
    """
    chosen = projections if names is None else list(names)
    (taken_at,) = _first(ask("SELECT max(read_at) FROM analytics_sources", 1))
    (newest_at,) = _first(ask("SELECT max(occurred_at) FROM orders_created", 1))
    sections = []
    for name in chosen:
        projection = projections[name]
        rows = _answer(ask, statements.rows(projections, projection, since=since, until=until), ROWS_MAX)
        summed = statements.sums(projections, projection, since=since, until=until)
        sections.append(Section(projection, rows, None if summed is None else _answer(ask, summed, SUMS_MAX)))
    return Report(since, until, taken_at, newest_at, tuple(sections))


def to_json(report: Report) -> dict[str, Any]:
    """Return *report* in JSON's types; amounts are in minor units, times RFC 3339 in UTC."""
    return {
        "since": _text(report.since),
        "until": _text(report.until),
        "taken_at": report.taken_at,
        "newest_at": report.newest_at,
        "projections": [_section(section) for section in report.sections],
    }


def _section(section: Section) -> dict[str, Any]:
    projection = section.projection
    described = {name: getattr(projection, name) for name in ("name", "title", "answers", "unit", "grain", "window")}
    return {
        **described,
        "rows": _objects(section.rows),
        "is_complete": section.rows.is_complete,
        "sums": None if section.sums is None else _objects(section.sums),
    }


def _objects(answer: Answer) -> list[dict[str, Any]]:
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def _first(answer: Answer) -> Any:
    return answer.rows[0]


def _answer(ask: Ask, statement: statements.Statement, limit: int) -> Answer:
    try:
        return ask(statement.sql, limit)
    except QueryRefused as error:
        raise statement.error(str(error)) from None


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
