"""
Charts as SVG: lines over time or over numbers, and bars.

A chart needs no script and no style of its own: colours are the custom properties ``--line-1`` and so on of the page, and lines
differ in their dashes, too. It is an image for a screen reader, with its title; the numbers are in the table beside it.
"""

from __future__ import annotations

__all__ = ["Line", "bars", "lines", "ticks"]

import math
from collections.abc import Callable, Sequence

from attrs import frozen
from markupsafe import Markup, escape

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 76, 16, 12, 28
BAR_HEIGHT, LABEL_WIDTH = 26, 190
LINES_MAX = 6
"""Lines in one chart: more could not be distinguished."""
SPREAD_MIN = 1e-300
"""Values that are closer are equal on a chart; steps between them could not be represented."""

_DASHES = ("", "7 3", "2 3", "10 3 2 3", "1 2", "14 4")

Format = Callable[[float], str]


@frozen
class Line:
    """A line of a chart, with its points in order; None in place of a value interrupts it."""

    label: str
    points: Sequence[tuple[float, float | None]]


def lines(title: str, drawn: Sequence[Line], show_x: Format, show_y: Format, x_ticks: Sequence[float]) -> Markup:
    """Return a chart of *drawn*; *x_ticks* are where the x axis is labelled."""
    drawn = drawn[:LINES_MAX]
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points if y is not None]
    if not ys:
        return Markup("")
    y_ticks = ticks(min(0, *ys), max(0, *ys))
    low, high = y_ticks[0], y_ticks[-1]
    first, last = min(xs), max(xs)

    def across(x: float) -> float:
        return (LEFT + (WIDTH - LEFT - RIGHT) * ((x - first) / (last - first) if last > first else 0.5))

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)

    parts = [_y_axis(y_ticks, down, show_y)]
    for x in x_ticks:
        if first <= x <= last:
            parts.append(
                Markup('<text class="axis" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    across(x), HEIGHT - 8, show_x(x)
                )
            )
    for number, line in enumerate(drawn):
        parts.append(_line(line, number, across, down))
    return _svg(title, WIDTH, HEIGHT, parts) + _legend([line.label for line in drawn])


def bars(title: str, shown: Sequence[tuple[str, float]], show: Format) -> Markup:
    """Return a chart of horizontal bars, each with its label and its value."""
    if not shown:
        return Markup("")
    largest = max([abs(value) for _, value in shown]) or 1
    space = WIDTH - LABEL_WIDTH - 110
    parts = []
    for number, (label, value) in enumerate(shown):
        y = number * BAR_HEIGHT
        length = max(1.0, space * abs(value) / largest)
        parts.append(
            Markup(
                '<text x="{}" y="{}" text-anchor="end">{}</text><rect class="bar" x="{}" y="{}" width="{:.1f}" height="{}"/>'
                '<text x="{:.1f}" y="{}">{}</text>'
            ).format(
                LABEL_WIDTH - 8, y + 17, _shortened(label), LABEL_WIDTH, y + 4, length, BAR_HEIGHT - 8,
                LABEL_WIDTH + length + 6, y + 17, show(value),
            )
        )  # fmt: skip
    return _svg(title, WIDTH, len(shown) * BAR_HEIGHT, parts)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return about so many round numbers in equal steps that enclose *low* and *high*, at least two."""
    if high - low < SPREAD_MIN:
        high = low + 1
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    start = math.floor(low / step)
    count = math.ceil(high / step - 1e-9) - start
    return [(start + n) * step for n in range(count + 1)]


def _y_axis(values: Sequence[float], down: Callable[[float], float], show: Format) -> Markup:
    mark = Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/><text class="axis" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
    )
    return Markup("").join(
        mark.format(LEFT, WIDTH - RIGHT, down(value), down(value), LEFT - 8, down(value) + 4, show(value)) for value in values
    )


def _line(line: Line, number: int, across: Callable[[float], float], down: Callable[[float], float]) -> Markup:
    runs: list[list[str]] = [[]]
    for x, y in line.points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append(f"{across(x):.1f} {down(y):.1f}")
    colour = f"line line-{number + 1}"
    paths = "".join(f"M{'L'.join(run)}" for run in runs if len(run) > 1)
    drawn = Markup('<path class="{}" d="{}" stroke-dasharray="{}"/>').format(colour, paths, _DASHES[number]) if paths else Markup("")
    for run in runs:
        if len(run) == 1:  # a line of one point would not be seen
            place = run[0].split(" ")
            drawn += Markup('<circle class="{}" cx="{}" cy="{}" r="2.5"/>').format(colour, *place)
    return drawn


def _legend(labels: Sequence[str]) -> Markup:
    if len(labels) < 2:
        return Markup("")
    key = Markup(
        '<li><svg width="28" height="8" aria-hidden="true"><path class="line line-{}" d="M0 4H28" stroke-dasharray="{}"/></svg> {}</li>'
    )
    items = Markup("").join(key.format(number + 1, _DASHES[number], label) for number, label in enumerate(labels))
    return Markup('<ul class="legend">{}</ul>').format(items)


def _svg(title: str, width: int, height: int, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, title, Markup("").join(parts)
    )


def _shortened(label: str) -> Markup:
    return escape(label if len(label) <= 28 else label[:27] + "…")
