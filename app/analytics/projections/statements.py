"""
Projections as single statements, which need no view: a projection is answered with the SQL of this release.

A statement has the projections that it reads before it, as common table expressions. It counts again whenever it is asked, so an
event that comes late is in the window of its own time as soon as the file has it.
"""

from __future__ import annotations

__all__ = ["Statement", "condition", "rows", "sums"]

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from attrs import frozen

from app.analytics.projections.declaration import BadProjection, Projection, read_by

_LINE = re.compile(r"LINE (\d+):")


@frozen
class Statement:
    """A statement that answers *projection*."""

    projection: Projection
    sql: str
    parts: tuple[tuple[int, Projection], ...]
    """The files in it, each with the number of the line before its own first one."""

    def error(self, text: str) -> BadProjection:
        """Return the error that DuckDB reports with *text*, at the line of the file that has it."""
        projection, line = self.projection, self.projection.first_line
        if found := _LINE.search(text):
            number = int(found[1])
            inside = [(number - before, part) for before, part in self.parts if 0 < number - before <= part.line_count]
            if inside:
                line, projection = inside[0]
        return BadProjection(projection.path, line, text.partition("\n")[0])


def rows(
    projections: Mapping[str, Projection],
    projection: Projection,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Statement:
    """Return the statement for the windows that end after *since* and begin before *until*, the newest first."""
    others = (column for column in (*projection.keys, projection.chart.series, projection.chart.x) if column)
    order = ", ".join(dict.fromkeys([f"{projection.time} DESC", *(column for column in others if column != projection.time)]))
    select = f"SELECT * FROM {projection.name}{_period(projection, since, until)} ORDER BY {order}"
    return _statement(projections, projection, select)


def sums(
    projections: Mapping[str, Projection],
    projection: Projection,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Statement | None:
    """Return the statement for the sums by the keys over the windows of `rows`; None if there is nothing to be summed up."""
    if not projection.sums:
        return None
    columns = [
        *projection.keys,
        *(f"sum({column}) AS {column}" for column in projection.sums),
        *(
            f"CAST(sum({over}) AS DOUBLE) / nullif(CAST(sum({under}) AS DOUBLE), 0) AS {name}"
            for name, (over, under) in projection.ratios.items()
        ),
    ]
    select = f"SELECT {', '.join(columns)} FROM {projection.name}{_period(projection, since, until)}"
    if projection.keys:
        first = projection.order or f"sum({projection.sums[0]}) DESC NULLS LAST"
        select += f" GROUP BY {', '.join(projection.keys)} ORDER BY {', '.join([first, *projection.keys])}"
    else:
        select += " HAVING count(*) > 0"
    return _statement(projections, projection, select)


def condition(projections: Mapping[str, Projection], projection: Projection, where: str) -> Statement:
    """Return the statement for the rows for which the SQL condition *where* holds, the newest first."""
    select = f"SELECT * FROM {projection.name} WHERE {where} ORDER BY {projection.time} DESC"
    return _statement(projections, projection, select)


def _period(projection: Projection, since: datetime | None, until: datetime | None) -> str:
    if since is not None and until is not None and projection.longest_seconds is not None:
        since = max(since, until - timedelta(seconds=projection.longest_seconds))
    conditions = []
    if since is not None:
        conditions.append(f"{projection.time} >= date_trunc('{projection.step}', {_literal(since)})")
    if until is not None:
        conditions.append(f"{projection.time} < {_literal(until)}")
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _literal(moment: datetime) -> str:
    return f"TIMESTAMPTZ '{moment.astimezone(UTC).isoformat()}'"


def _statement(projections: Mapping[str, Projection], projection: Projection, select: str) -> Statement:
    needed = {projection.name}
    for name in reversed(list(projections)):  # each comes after those that it reads
        if name in needed:
            needed |= read_by(projections[name], projections)
    text = ""
    parts = []
    for name, part in projections.items():
        if name in needed:
            # Not materialized, so that a condition on the time reaches the tables.
            text += f"{', ' if text else 'WITH '}{name} AS NOT MATERIALIZED (\n"
            parts.append((text.count("\n"), part))
            text += part.sql.rstrip() + "\n)"
    return Statement(projection, f"{text}\n{select}", tuple(parts))
