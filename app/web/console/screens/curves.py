"""Curves of the last hour, as a drawing that needs no script, and as the data from which a script draws."""

from __future__ import annotations

__all__ = ["Curve", "Line", "curves"]

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import orjson
from attrs import frozen

from app.web.console.samples import Point

WIDTH, HEIGHT = 360, 100
"""Of the drawing, in its own units; the style sheet gives its size."""

_MINUTES = 5


@frozen
class Line:
    """One line of a curve: its name, its values, and the points of its drawing, in pieces where values are missing."""

    name: str
    values: Sequence[float | None]
    pieces: Sequence[str]

    @property
    def latest(self) -> float | None:
        """The newest value; None if it is missing."""
        return self.values[-1] if self.values else None

    @property
    def greatest(self) -> float | None:
        """The greatest value; None if all are missing."""
        return max((value for value in self.values if value is not None), default=None)


@frozen
class Curve:
    """Lines over the same time."""

    name: str
    title: str
    unit: str
    times: Sequence[int]
    lines: Sequence[Line]

    @property
    def data(self) -> str:
        """What a script draws: JSON of the columns, the times first."""
        return orjson.dumps([self.times, *(line.values for line in self.lines)]).decode()

    @property
    def names(self) -> str:
        """JSON of the names of the lines."""
        return orjson.dumps([line.name for line in self.lines]).decode()

    @property
    def rows(self) -> list[tuple[str, list[float | None]]]:
        """The greatest value of each line within five minutes, by the minute at which they begin (RFC 3339)."""
        found: dict[int, list[list[float]]] = {}
        for index, at in enumerate(self.times):
            row = found.setdefault(at // (60 * _MINUTES), [[] for _ in self.lines])
            for cell, line in zip(row, self.lines, strict=True):
                if (value := line.values[index]) is not None:
                    cell.append(value)
        return [
            (datetime.fromtimestamp(slot * 60 * _MINUTES, UTC).isoformat(), [max(cell, default=None) for cell in row])
            for slot, row in sorted(found.items(), reverse=True)
        ]


def curves(points: Sequence[Point]) -> list[Curve]:
    """Return the curves of *points*."""
    return [
        _curve("orders", "Orders a second", "/s", points, accepted=lambda p: p.accepted_per_s, ended=lambda p: p.completed_per_s),
        _curve("outbox", "Events that wait for the bus", "", points, waiting=lambda p: p.outbox_pending),
        _curve("lag", "Age of messages when they are handled", "s", points, mean=lambda p: p.lag_seconds),
    ]


def _curve(
    name: str, title: str, unit: str, points: Sequence[Point], **lines: Callable[[Point], float | None]
) -> Curve:
    columns = {line: [value(point) for point in points] for line, value in lines.items()}
    top = max((value for values in columns.values() for value in values if value is not None), default=0) or 1
    return Curve(
        name,
        title,
        unit,
        [point.at for point in points],
        [Line(line, values, _pieces(points, values, top)) for line, values in columns.items()],
    )


def _pieces(points: Sequence[Point], values: Sequence[float | None], top: float) -> list[str]:
    """Return the points of *values* in a drawing whose right edge is the newest point and whose upper edge is *top*."""
    if not points:
        return []
    end = points[-1].at
    pieces: list[list[str]] = [[]]
    for point, value in zip(points, values, strict=True):
        if value is None:
            pieces.append([])
            continue
        x, y = WIDTH - (end - point.at) / 10, HEIGHT - value / top * (HEIGHT - 2) - 1
        pieces[-1].append(f"{x:.1f},{y:.1f}")
    return [" ".join(piece if len(piece) > 1 else piece * 2) for piece in pieces if piece]  # one point is a dot
