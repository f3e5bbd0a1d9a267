"""Analytics: the results of the projections, as curves and tables, from the process that counts them."""

from __future__ import annotations

__all__ = ["PERIODS", "SCREEN", "build", "shown_result"]

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import hdrs, web
from attrs import frozen

from app.web.console.frame import Page, Screen, Visit
from app.web.console.screens.parts import ScreenParts, Sources
from app.web.responses.problems import ProblemError

if TYPE_CHECKING:
    from app.analytics.projections.declaration import Projection
    from app.analytics.report.content import Section

SCREEN = Screen("analytics", "Analytics", "/console/analytics")

PERIODS: Mapping[str, tuple[str, timedelta]] = {
    "1h": ("Last hour", timedelta(hours=1)),
    "24h": ("Last day", timedelta(days=1)),
    "7d": ("Last 7 days", timedelta(days=7)),
    "30d": ("Last 30 days", timedelta(days=30)),
}
"""What a person may choose: the name and the length of each period."""

_DEFAULT_PERIOD = "24h"
_LINES_MAX = 3
_ROWS_SHOWN = 100


@frozen
class _Chart:
    """What the script draws, and the lines without a script."""

    names: Sequence[str]
    times: Sequence[int]
    lines: Sequence[Sequence[float | None]]

    @property
    def data(self) -> str:
        """JSON of the columns, the times first."""
        return orjson.dumps([self.times, *self.lines]).decode()

    @property
    def labels(self) -> str:
        """JSON of the names of the lines."""
        return orjson.dumps(self.names).decode()


def build(sources: Sources) -> ScreenParts:
    """Return the screen."""
    file, live, rendering = Path(sources.analytics_file), sources.live, sources.rendering

    def chosen(visit: Visit) -> tuple[str, str]:
        from app.analytics.projections.declaration import load

        name, period = visit.query.get("show", ""), visit.query.get("period", _DEFAULT_PERIOD)
        if period not in PERIODS or (name and name not in load()):
            raise ProblemError(404, "not_found", "There is no such projection or period.")
        return name, period

    async def show(visit: Visit) -> web.StreamResponse:
        name, period = await asyncio.to_thread(chosen, visit)
        found = await asyncio.to_thread(_read, file, name, period)
        return visit.page("operations/analytics.html", name=name, period=period, periods=PERIODS, **found)

    async def follow(visit: Visit) -> web.StreamResponse:
        """Send the result of one projection after each change."""
        name, period = await asyncio.to_thread(chosen, visit)

        def shown(found: Mapping[str, Any]) -> Mapping[str, str]:
            return {"result": rendering.render("operations/analytics_result.html", **found)}

        async def fetch() -> Mapping[str, Any]:
            return await asyncio.to_thread(_read, file, name, period)

        return await live.stream(visit, ("analytics", name, period), fetch, shown)

    return ScreenParts(
        SCREEN,
        (
            Page(hdrs.METH_GET, SCREEN.path, show, SCREEN),
            Page(hdrs.METH_GET, f"{SCREEN.path}/live", follow, SCREEN),
        ),
    )


def _read(file: Path, name: str, period: str) -> dict[str, Any]:
    """Return all projections, and the result of *name* in *period*; without a name only whether there are results."""
    from app.analytics.errors import AnalyticsError
    from app.analytics.projections.declaration import load
    from app.analytics.query import gathered
    from app.analytics.query_server import ask, socket_path
    from app.analytics.report.content import collect

    projections = load()
    found: dict[str, Any] = {"projections": projections, "problem": None, "taken_at": None, "result": None}
    # Only the process that writes the file is asked: opened here, the file would be locked against it.
    if not socket_path(file).exists():
        return {**found, "problem": f"No process counts into {file.name}."}
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        report = collect(
            lambda sql, limit: gathered(ask(file, sql, limit=limit)),
            projections, since=now - PERIODS[period][1], until=now, names=[name] if name else [],
        )  # fmt: skip
    except (AnalyticsError, ImportError) as error:
        return {**found, "problem": str(error).partition("\n")[0]}
    result = shown_result(report.sections[0]) if report.sections else None
    return {**found, "taken_at": report.taken_at, "result": result}


def shown_result(section: Section) -> dict[str, Any]:
    """Return what the page shows of *section*: its chart, if it is one over time, and its tables."""
    projection, rows = section.projection, [dict(zip(section.rows.columns, row, strict=True)) for row in section.rows.rows]
    tables = [("Sums of the period", section.sums)] if section.sums is not None else []
    tables.append(("Windows, the newest first", section.rows))
    return {
        "projection": projection,
        "chart": _chart(projection, rows) if _is_over_time(projection) else None,
        "tables": [
            {"title": title, "columns": answer.columns, "rows": [_shown_row(projection, answer.columns, row) for row in answer.rows[:_ROWS_SHOWN]]}
            for title, answer in tables
        ],
    }  # fmt: skip


def _chart(projection: Projection, rows: Sequence[Mapping[str, Any]]) -> _Chart | None:
    """Return the lines of *rows*, the newest first: one for each column and each value of the series; None with fewer than two times."""
    declared = projection.chart
    series = dict.fromkeys(row.get(declared.series) if declared.series else None for row in rows)
    keys = [(column, value) for value in series for column in declared.y][:_LINES_MAX]
    by_time: dict[int, dict[Any, float | None]] = {}
    for row in reversed(rows):
        at = _seconds(row[declared.x])
        value = row.get(declared.series) if declared.series else None
        by_time.setdefault(at, {}).update({(column, value): row[column] for column in declared.y})
    if len(by_time) < 2:
        return None
    times = sorted(by_time)
    names = [column if value is None else f"{column} {value}" for column, value in keys]
    return _Chart(names, times, [[_number(by_time[at].get(key)) for at in times] for key in keys])


def _is_over_time(projection: Projection) -> bool:
    return projection.chart.kind == "line" and projection.chart.x == projection.time


def _seconds(text: str) -> int:
    """Return the time in seconds since 1970; one without an offset is in UTC."""
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp())


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def _shown_row(projection: Projection, columns: Sequence[str], row: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the cells of *row*: amounts with their currency, times apart from other texts."""
    values = dict(zip(columns, row, strict=True))
    cells = []
    for column, value in values.items():
        kind = "text"
        if column in projection.money and isinstance(value, int | float) and values.get("currency"):
            kind, value = "money", {"amount": round(value), "currency": values["currency"]}
        elif isinstance(value, int | float):
            kind = "number"
        elif column == projection.time:
            kind = "time"
        cells.append({"kind": kind, "value": value})
    return cells
