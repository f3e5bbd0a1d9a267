"""Draw the explanation of an order as a tree of text."""

from __future__ import annotations

__all__ = ["has_colours", "lines_of"]

import os
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import click

from app.cli import console

Json = dict[str, Any]

COLOURS = {"pending": "yellow", "dead": "red", "confirmed": "green", "cancelled": "red", "processing": "yellow", "reserved": "yellow"}

DETAILS = ("reason", "error", "attempt", "reference", "refund_id")
"""Members of an event's data that are shown beside it."""


def has_colours() -> bool:
    """Return whether stdout is a terminal, and NO_COLOR is unset or empty (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def lines_of(explained: Json, is_coloured: bool) -> Iterator[str]:
    """Yield the lines for *explained*, a body of ``GET /v1/orders/{id}/explain``."""

    def coloured(text: str, name: str) -> str:
        return click.style(text, fg=COLOURS[name]) if is_coloured and name in COLOURS else text

    yield f"{explained['order_id']}  {coloured(explained['status'], explained['status'])}"
    yield explained["summary"]
    yield ""
    yield from _tree(explained["events"], coloured)
    if not explained["events"]:
        yield "(the history has no events of this order)"
    yield from _section("timers", [f"{timer['due_at']}  {timer['name'].partition(':')[0]} ({timer['subject']})" for timer in explained["timers"]])
    payment = explained["payment"]
    if payment is not None:
        attempts = [
            f"{attempt['at']}  {attempt['outcome']}{_details(attempt['detail'])}" for attempt in payment["attempts"]
        ]
        yield from _section(f"payment: {payment['status']}, {console.amount(payment['amount'])}", attempts, is_always=True)
    reservation = explained["reservation"]
    if reservation is not None:
        lines = [f"{line['quantity']} x {line['product_id']}" for line in reservation["lines"]]
        yield from _section(f"reservation: {reservation['status']}", lines, is_always=True)
    letters = [f"{letter['consumer']}  {letter['subject']}  {letter['error']}: {letter['detail']}" for letter in explained["dead_letters"]]
    yield from _section("dead letters", letters)
    yield from _section("audit", [f"{entry['at']}  {entry['actor']}  {entry['action']}" for entry in explained["audit"]])
    reasons = explained.get("reasons", {})
    yield from _section("not reachable", [f"{name}: {reasons.get(name, '')}".rstrip(": ") for name in explained["unreachable"]])


def _tree(events: Sequence[Json], coloured: Any) -> Iterator[str]:
    children: dict[str | None, list[Json]] = {}
    known = {event["event_id"] for event in events}
    for event in events:
        parent = event.get("parent_id", event["cause_id"])
        children.setdefault(parent if parent in known else None, []).append(event)

    def draw(event: Json, before: str, branch: str, below: str) -> Iterator[str]:
        delivery = event["delivery"] if event["attempts"] < 2 else f"{event['delivery']}, {event['attempts']} attempts"
        text = f"{_time(event['at'])}  {event['subject']}{_details(event['data'])}  [{delivery}]"
        yield before + branch + coloured(text, event["delivery"])
        following = children.get(event["event_id"], [])
        for place, each in enumerate(following):
            is_last = place == len(following) - 1
            yield from draw(each, before + below, "└─ " if is_last else "├─ ", "   " if is_last else "│  ")

    for root in children.get(None, []):
        yield from draw(root, "", "", "")


def _section(title: str, lines: Sequence[str], *, is_always: bool = False) -> Iterator[str]:
    if lines or is_always:
        yield ""
        yield title
        yield from (f"  {line}" for line in lines)


def _details(data: Json) -> str:
    found = [f"{name}={data[name]}" for name in DETAILS if data.get(name) is not None]
    return f" ({', '.join(found)})" if found else ""


def _time(at: str) -> str:
    return datetime.fromisoformat(at).strftime("%H:%M:%S.%f")[:-3]
