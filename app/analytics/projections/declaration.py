"""
The declaration of a projection: one SQL file, a SELECT over the tables of the events or over other projections.

The file begins with comments ``-- name: value``, which `FIELDS` lists; its name is that of the projection. The SELECT is in
DuckDB's SQL. Money stays in minor units, and no query adds the amounts of two currencies: each has the currency in its grain.
"""

from __future__ import annotations

__all__ = ["FIELDS", "FOLDER", "GROUPS", "BadProjection", "Chart", "Projection", "UnknownProjection", "find", "load", "read_by"]

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

from attrs import field, frozen

from app.analytics.errors import AnalyticsError

FOLDER = Path(__file__).parent
"""The folder whose folders have the files."""

FIELDS = {
    "title": "what the reader sees",
    "answers": "the question that it answers",
    "unit": "of what its numbers are: orders, seconds, minor units of the currency",
    "grain": "what one row is",
    "window": "tumbling, sliding or session, and how long",
    "time": "the column with the begin of the window, and its step if the column is not named by it: minute, hour, day, week",
    "longest": "the longest period that a report shows of it, such as 6h; optional",
    "chart": "line or bar, the column of the x axis, those of the y axis, and the column by which lines are distinguished",
    "keys": "the columns by which a whole period is summed up; optional",
    "sums": "the columns that may be added up over a period; optional",
    "ratios": "columns that are one sum divided by another, `rate = refunded / captured`; optional",
    "money": "the columns in minor units of the column `currency`; optional",
    "order": "the column by which a whole period is ordered; without it the first sum, the largest first",
}
"""The comments at the head of a file, each with its meaning."""

GROUPS = ("sales", "orders", "customers", "payments", "stock")
"""The folders in the order in which a report shows what is in them; further ones come last."""

_OPTIONAL = {"keys", "longest", "money", "order", "ratios", "sums"}
_STEPS = ("minute", "hour", "day", "week", "month", "year")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_FIELD = re.compile(r"--\s*([a-z]+):\s*(.*\S)\s*")
_RATIO = re.compile(r"([a-z0-9_]+) = ([a-z0-9_]+) / ([a-z0-9_]+)")
_PERIOD = re.compile(r"([1-9][0-9]*)([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400}


class BadProjection(AnalyticsError):
    """A file is no projection, or its SQL is wrong: correct the file at the line that the message names."""

    def __init__(self, path: Path, line: int, detail: str) -> None:
        super().__init__(f"{path}:{line}: {detail}")
        self.path, self.line, self.detail = path, line, detail


class UnknownProjection(AnalyticsError):
    """There is no such projection: take one of those that the message names."""


@frozen
class Chart:
    """How a projection is drawn."""

    kind: str
    """``line`` or ``bar``."""
    x: str
    y: tuple[str, ...]
    series: str | None = None
    """The column whose each value of which is a line of its own, if there is one."""


@frozen(kw_only=True)
class Projection:
    """A declared projection."""

    name: str
    path: Path
    sql: str
    """The whole file; its lines are those of the file."""
    title: str
    answers: str
    unit: str
    grain: str
    window: str
    time: str
    step: str
    chart: Chart
    longest_seconds: int | None = None
    keys: tuple[str, ...] = ()
    sums: tuple[str, ...] = ()
    ratios: Mapping[str, tuple[str, str]] = field(factory=dict)
    money: tuple[str, ...] = ()
    order: str | None = None

    @property
    def select(self) -> str:
        """The SELECT without the comments at its head."""
        return "".join(self.sql.splitlines(keepends=True)[self.first_line - 1 :])

    @property
    def first_line(self) -> int:
        """The number of the line on which the SELECT begins."""
        lines = self.sql.splitlines()
        return next((n for n, line in enumerate(lines, 1) if line.strip() and not line.startswith("--")), len(lines) + 1)

    @property
    def line_count(self) -> int:
        """The number of lines of the file."""
        return len(self.sql.splitlines())

    def line_of(self, field: str) -> int:
        """Return the number of the line with the comment *field*, or 1."""
        lines = self.sql.splitlines()
        return next((n for n, line in enumerate(lines, 1) if line.startswith(f"-- {field}:")), 1)


def load(folder: Path = FOLDER) -> dict[str, Projection]:
    """
    Return the projections in *folder* by name: each after those that it reads, otherwise in the order of `GROUPS`.

    Raises:
        BadProjection: A file is no projection, two have one name, or they read each other in a circle.
    """
    found: dict[str, Projection] = {}
    for path in sorted(folder.rglob("*.sql"), key=lambda path: (_rank(path.parent.name), path.name)):
        projection = _parsed(path)
        if projection.name in found:
            raise BadProjection(path, 1, f"{found[projection.name].path} has the same name")
        found[projection.name] = projection
    return _ordered(found)


def _rank(group: str) -> int:
    return GROUPS.index(group) if group in GROUPS else len(GROUPS)


def find(projections: Mapping[str, Projection], name: str) -> Projection:
    """
    Return the projection *name*.

    Raises:
        UnknownProjection: There is none.
    """
    if name not in projections:
        close = get_close_matches(name, projections, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UnknownProjection(f"there is no projection {name!r}; known are {', '.join(sorted(projections))}{hint}")
    return projections[name]


def _ordered(projections: Mapping[str, Projection]) -> dict[str, Projection]:
    """Return *projections* so that each comes after those that it reads."""
    reads = {name: read_by(projection, projections) for name, projection in projections.items()}
    done: dict[str, Projection] = {}
    while len(done) < len(projections):
        ready = [name for name in projections if name not in done and reads[name] <= set(done)]
        if not ready:
            circle = [name for name in projections if name not in done]
            raise BadProjection(projections[circle[0]].path, 1, f"{', '.join(circle)} read each other in a circle")
        done |= {name: projections[name] for name in ready}
    return done


def read_by(projection: Projection, others: Iterable[str]) -> set[str]:
    """Return which of *others* the SQL of *projection* names."""
    without_comments = re.sub(r"--.*", "", projection.sql)
    return set(re.findall(r"[a-z0-9_]+", without_comments)) & set(others)


def _parsed(path: Path) -> Projection:
    text = path.read_text(encoding="utf-8")
    if not _NAME.fullmatch(path.stem):
        raise BadProjection(path, 1, "the name of the file must be lower-case letters, digits and underscores")
    fields: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("--"):
            break
        match = _FIELD.fullmatch(line)
        if match is None or match[1] not in FIELDS:
            raise BadProjection(path, number, f"must be `-- name: value` with one of the names {', '.join(FIELDS)}")
        fields[match[1]], lines[match[1]] = match[2], number
    if missing := [name for name in FIELDS if name not in fields and name not in _OPTIONAL]:
        raise BadProjection(path, 1, f"lacks the comment `-- {missing[0]}: {FIELDS[missing[0]]}`")

    time, _, step = fields["time"].partition(" ")
    if (step or time) not in _STEPS:
        raise BadProjection(path, lines["time"], f"the step must be one of {', '.join(_STEPS)}")
    projection = Projection(
        name=path.stem, path=path, sql=text, time=time, step=step or time,
        chart=_chart(path, lines["chart"], fields["chart"]),
        longest_seconds=_seconds(path, lines.get("longest", 0), fields.get("longest")),
        keys=_names(fields.get("keys", "")), sums=_names(fields.get("sums", "")),
        ratios=_ratios(path, lines.get("ratios", 0), fields.get("ratios")), money=_names(fields.get("money", "")),
        order=fields.get("order"),
        **{name: fields[name] for name in ("title", "answers", "unit", "grain", "window")},
    )  # fmt: skip
    if not projection.select.strip():
        raise BadProjection(path, len(text.splitlines()) or 1, "has no SELECT after the comments")
    if projection.chart.kind == "bar" and not (projection.keys and projection.sums):
        raise BadProjection(path, lines["chart"], "a bar chart needs `-- keys:` and `-- sums:`, which it shows for a period")
    return projection


def _chart(path: Path, line: int, text: str) -> Chart:
    parts = text.split()
    if len(parts) not in (3, 4) or parts[0] not in ("line", "bar"):
        raise BadProjection(path, line, "must be `-- chart: line|bar X Y[,Y...] [SERIES]`")
    return Chart(parts[0], parts[1], tuple(parts[2].split(",")), parts[3] if len(parts) == 4 else None)


def _seconds(path: Path, line: int, text: str | None) -> int | None:
    if text is None:
        return None
    match = _PERIOD.fullmatch(text)
    if match is None:
        raise BadProjection(path, line, "must be a number of minutes, hours or days, such as 90m, 6h or 7d")
    return int(match[1]) * _SECONDS[match[2]]


def _ratios(path: Path, line: int, text: str | None) -> dict[str, tuple[str, str]]:
    matches = [_RATIO.fullmatch(part.strip()) for part in text.split(",")] if text else []
    if not all(matches):
        raise BadProjection(path, line, "must be `-- ratios: rate = refunded / captured`")
    return {match[1]: (match[2], match[3]) for match in matches if match is not None}


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
