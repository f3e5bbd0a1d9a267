"""The page of a report: one HTML file that needs no network and no script, for a screen in light or dark, and for paper."""

from __future__ import annotations

__all__ = ["chart_of", "page"]

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from app.analytics.projections.declaration import Projection
from app.analytics.query import Answer
from app.analytics.report import charts
from app.analytics.report.content import Report, Section
from modules.values import MINOR_DIGITS

BARS_MAX = 12
POINTS_MAX = 2_000
"""Points of a line, those of windows without an event included."""

SCALE_MAX = 20
"""Lines of which one is larger than another by this factor do not share a chart."""

_HEADING = Markup('<p class="series">{}</p>')
_STEPS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}
_TIME_TICKS = 6


def page(report: Report) -> str:
    """Return *report* as HTML."""
    return _template().render(report=report, chart_of=chart_of, cell=_cell, kind=_kind, moment=_moment)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("app.analytics.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def chart_of(section: Section) -> Markup:
    """Return the chart of *section*; if its values depend on the currency, one chart for each currency, with an axis of its own."""
    chart = section.projection.chart
    if chart.kind == "bar":
        return _bars(section)
    answer = section.rows
    if chart.series != "currency":
        return _lines(section.projection, answer, None)
    place = answer.columns.index("currency")
    drawn = []
    for currency in sorted({row[place] for row in answer.rows}):
        of_it = [row for row in answer.rows if row[place] == currency]
        drawn.append(_lines(section.projection, Answer(answer.columns, answer.types, of_it, True), currency))
    return Markup("").join(drawn)


def _bars(section: Section) -> Markup:
    projection, answer = section.projection, section.sums
    assert answer is not None, "a bar chart has sums"
    x, y = (answer.columns.index(name) for name in (projection.chart.x, projection.chart.y[0]))
    others = [n for n, name in enumerate(answer.columns) if name in projection.keys and name not in (projection.chart.x, "step")]
    shown = [
        (" ".join([str(row[x]), *(str(row[n]) for n in others if row[n] is not None)]), float(row[y] or 0)) for row in answer.rows
    ]
    title = f"{projection.title}: {projection.chart.y[0]}"
    return charts.bars(title, shown[:BARS_MAX], lambda value: _number(value))


def _lines(projection: Projection, answer: Answer, currency: str | None) -> Markup:
    chart = projection.chart
    x = answer.columns.index(chart.x)
    is_time = chart.x == projection.time
    drawn: list[charts.Line] = []
    ordered = list(reversed(answer.rows))  # the newest came first
    for name in chart.y:
        y = answer.columns.index(name)
        is_counted = is_time and projection.window.startswith("tumbling") and answer.types[y] != "DOUBLE"
        step = _STEPS.get(projection.step) if is_counted else None
        for label, rows in _by_series(answer, ordered, chart.series if currency is None else None):
            points = [(_position(row[x]), None if row[y] is None else float(row[y])) for row in rows]
            text = label if len(chart.y) == 1 and label else " ".join(filter(None, [name, label]))
            drawn.append(charts.Line(text, _filled(points, step)))
    amounts = chart.y[0] in projection.money

    def show(value: float) -> str:
        return _major(round(value), currency, is_short=True) if amounts and currency else _number(value)

    title = f"{projection.title}: {', '.join(chart.y)}"
    xs = [position for line in drawn for position, _ in line.points]
    marks = [] if not xs else _time_ticks(min(xs), max(xs)) if is_time else charts.ticks(min(xs), max(xs))
    show_x = _time_label(xs) if is_time else _number
    if currency is None and not _share_a_scale(drawn):
        return Markup("").join(
            _HEADING.format(line.label) + charts.lines(f"{title}, {line.label}", [line], show_x, show, marks) for line in drawn
        )
    heading = _HEADING.format(currency) if currency else Markup("")
    return heading + charts.lines(f"{title}, {currency}" if currency else title, drawn, show_x, show, marks)


def _share_a_scale(drawn: Sequence[charts.Line]) -> bool:
    """Return whether the values of all lines are so near that none of them looks like zero beside another."""
    largest = [max((abs(y) for _, y in line.points if y), default=0.0) for line in drawn]
    return min((value for value in largest if value), default=0.0) * SCALE_MAX >= max(largest, default=0.0)


def _by_series(answer: Answer, rows: Sequence[Sequence[Any]], series: str | None) -> list[tuple[str, list[Sequence[Any]]]]:
    if series is None:
        return [("", list(rows))]
    place = answer.columns.index(series)
    found: dict[Any, list[Sequence[Any]]] = {}
    for row in rows:
        found.setdefault(row[place], []).append(row)
    newest = sorted(found, key=str)[-charts.LINES_MAX :]
    return [(_moment(value) if "T" in str(value) and "TIME" in answer.types[place] else str(value), found[value]) for value in newest]


def _filled(points: list[tuple[float, float | None]], step: timedelta | None) -> list[tuple[float, float | None]]:
    """Return *points* with a zero for each window between two of them that has no row, because nothing happened in it."""
    if step is None or len(points) < 2 or (points[-1][0] - points[0][0]) / step.total_seconds() > POINTS_MAX:
        return points
    known = dict(points)
    count = round((points[-1][0] - points[0][0]) / step.total_seconds())
    filled = [points[0][0] + n * step.total_seconds() for n in range(count + 1)]
    return [(position, known.get(position, 0.0)) for position in filled]


def _position(value: Any) -> float:
    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else float(value)


def _time_ticks(first: float, last: float) -> list[float]:
    steps = (60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400, 28 * 86400, 91 * 86400, 364 * 86400)
    step = next((each for each in steps if (last - first) / each <= _TIME_TICKS), steps[-1])
    start = _multiple_from(first, step)
    return [float(start + n * step) for n in range(int((last - start) // step) + 1)] or [first]


def _multiple_from(value: float, step: int) -> int:
    """Return the smallest multiple of *step* that is at least *value*."""
    return -int(-value // step) * step


def _time_label(xs: Sequence[float]) -> charts.Format:
    is_long = bool(xs) and max(xs) - min(xs) > 2 * 86400
    epoch = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    return lambda x: (epoch + timedelta(seconds=x)).strftime("%d %b" if is_long else "%d %b %H:%M")


def _cell(section: Section, answer: Answer, row: Sequence[Any], place: int) -> str:
    value, name = row[place], answer.columns[place]
    if value is None:
        return "–"
    if name in section.projection.money:
        return _major(int(value), row[answer.columns.index("currency")])
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value)
    return _moment(value) if answer.types[place].startswith("TIMESTAMP") else str(value)


def _kind(answer: Answer, place: int) -> str:
    """Return the class of the cells of a column."""
    if answer.types[place].startswith("TIMESTAMP"):
        return "time"
    return "text" if answer.types[place].startswith(("VARCHAR", "BOOLEAN")) else "number"


def _moment(text: str | None) -> str:
    if text is None:
        return "–"
    moment = datetime.fromisoformat(text)
    return moment.strftime("%Y-%m-%d" if (moment.hour, moment.minute) == (0, 0) else "%Y-%m-%d %H:%M")


def _number(value: float) -> str:
    """Return *value* with narrow spaces between thousands, and with decimals where it is small."""
    if value == int(value):
        text = f"{int(value):,}"
    else:
        text = f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}".rstrip("0")
    return text.replace(",", "\u202f").replace("-", "−")


def _major(amount: int, currency: str | None, *, is_short: bool = False) -> str:
    """Return *amount* minor units in the currency's usual unit, ``12.50 EUR``; without the currency if *is_short*."""
    digits = MINOR_DIGITS.get(currency or "", 0)
    text = f"{Decimal(amount).scaleb(-digits):,.{0 if is_short and amount % 10**digits == 0 else digits}f}"
    text = text.replace(",", "\u202f").replace("-", "−")
    return text if is_short else f"{text} {currency or ''}".rstrip()
