"""
The causal tree of one order as a drawing: a lane for each module, a row for each event, a line from each event to what it caused.

The rows are in the order of the explanation: causes before effects. Frame and line of an event show how it was delivered:
within the process, over the bus (a dashed line), not yet, or not at all. Timers that are still to come are the last rows.
"""

from __future__ import annotations

__all__ = ["Edge", "Graph", "Lane", "Node", "draw"]

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import frozen

LANE_WIDTH = 224
ROW_HEIGHT = 52
TOP = 36
"""Height of the lanes' names."""

_BOX_WIDTH, _BOX_HEIGHT = 204, 38
_LEFT = 10
_NAME_MAX = 27


@frozen
class Lane:
    """The column of a module."""

    name: str
    x: int


@frozen
class Node:
    """An event or a timer: the box, its two lines of text, and its kind, for the style sheet."""

    x: int
    y: int
    title: str
    detail: str
    kind: str


@frozen
class Edge:
    """A line from a cause to an effect, as the data of an SVG path; *kind* is how the cause was delivered."""

    path: str
    kind: str


@frozen
class Graph:
    """The drawing, in its own units."""

    width: int
    height: int
    lane_width: int
    box_width: int
    box_height: int
    lanes: Sequence[Lane]
    nodes: Sequence[Node]
    edges: Sequence[Edge]


def draw(events: Sequence[Mapping[str, Any]], timers: Sequence[Mapping[str, Any]], modules: Sequence[str]) -> Graph:
    """
    Return the drawing of *events* and *timers*, as ``GET /v1/orders/{id}/explain`` gives them.

    Each of *modules* has a lane, in this order; a module that only the events name has one after them.
    """
    names = list(dict.fromkeys([*modules, *(each["module"] for each in (*events, *timers))]))
    lanes = {name: index for index, name in enumerate(names)}
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    first = _moment(events[0]["at"]) if events else None
    for row, event in enumerate(events):
        detail = "" if first is None else _after(_moment(event["at"]), first)
        if event["attempts"] > 1:
            detail += f" · {event['attempts']} attempts"
        node = _node(lanes[event["module"]], row, event["subject"], detail, event["delivery"])
        cause = nodes.get(str(event["parent_id"]))
        if cause is not None:
            edges.append(Edge(_line(cause, node), cause.kind))
        nodes[event["event_id"]] = node
    drawn = list(nodes.values())
    for row, timer in enumerate(timers, start=len(events)):
        detail = f"due {_moment(timer['due_at']):%H:%M:%S}"
        drawn.append(_node(lanes[timer["module"]], row, timer["subject"], detail, "timer"))
    return Graph(
        width=LANE_WIDTH * len(names),
        height=TOP + ROW_HEIGHT * len(drawn) + 8,
        lane_width=LANE_WIDTH,
        box_width=_BOX_WIDTH,
        box_height=_BOX_HEIGHT,
        lanes=[Lane(name, LANE_WIDTH * index) for name, index in lanes.items()],
        nodes=drawn,
        edges=edges,
    )


def _node(lane: int, row: int, subject: str, detail: str, kind: str) -> Node:
    subject = subject.partition(".")[2] or subject  # the lane gives the module
    title = subject if len(subject) <= _NAME_MAX else subject[: _NAME_MAX - 1] + "…"
    return Node(LANE_WIDTH * lane + _LEFT, TOP + ROW_HEIGHT * row, title, detail, kind)


def _line(cause: Node, effect: Node) -> str:
    """Return the path from the lower edge of *cause* to the upper edge of *effect*; within one lane it runs along the left side."""
    x, y = cause.x + 24, cause.y + _BOX_HEIGHT
    to_x, to_y = effect.x + 24, effect.y
    if x == to_x:
        side = x - 30 if to_y - y > ROW_HEIGHT else x
        return f"M{x} {y}C{side} {y + 14} {side} {to_y - 14} {to_x} {to_y}"
    middle = to_y - (ROW_HEIGHT - _BOX_HEIGHT) // 2
    x = cause.x + (_BOX_WIDTH - 24 if to_x > x else 24)
    return f"M{x} {y}V{middle - 6}Q{x} {middle} {x + (6 if to_x > x else -6)} {middle}H{to_x + (-6 if to_x > x else 6)}Q{to_x} {middle} {to_x} {to_y}"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _after(at: datetime, first: datetime) -> str:
    seconds = (at - first).total_seconds()
    time = at.strftime("%H:%M:%S") + f".{at.microsecond // 1000:03d}"
    if seconds <= 0:
        return time
    if seconds >= 60:
        return f"{time} · +{seconds / 60:.0f} min"
    return f"{time} · +{seconds * 1000:.0f} ms" if seconds < 1 else f"{time} · +{seconds:.1f} s"
