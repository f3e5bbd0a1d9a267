"""What follows from the table of conditions: Prometheus' rules, the panels of the dashboard and a table in the documents."""

from __future__ import annotations

__all__ = ["alert_rules", "alerts_table", "with_alerts_table", "with_condition_panels"]

import json
import re
from collections.abc import Iterator
from textwrap import wrap
from typing import Any

from app.cli.new.tables import table, with_table
from app.telemetry.attention import CONDITIONS, Condition

_HEAD = """\
# Alerts that wake the operator (page) or can wait until the morning (ticket). The runbook is a page and a section of the
# documents: what to do. Written by `python -m app new documents` from app/telemetry/attention; do not edit.

groups:
  - name: fulfilment
    rules:
"""

_LINE_MAX = 110

FIRST_ID = 101
"""The id of the row of the conditions on the dashboard; their panels have the next ones."""

_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 8
_DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
_MEANS_WIDTH, _DO_WIDTH = 48, 60
_UNITS = {"duration": "s", "share": "percentunit"}

_HEADS = ("Alert", "Means", "Do")


def alert_rules() -> str:
    """Return the file of Prometheus' rules."""
    return _HEAD + "\n".join("\n".join(_rule(condition)) + "\n" for condition in CONDITIONS)


def _rule(condition: Condition) -> Iterator[str]:
    yield f"      - alert: {condition.name}"
    if len(condition.check.expression) <= _LINE_MAX:
        yield f"        expr: {condition.check.expression}"
    else:
        yield "        expr: >-"
        yield from (f"          {line}" for line in _broken(condition.check.expression))
    if condition.for_seconds:
        yield f"        for: {condition.for_seconds:g}s" if condition.for_seconds % 60 else f"        for: {condition.for_seconds / 60:g}m"
    yield f"        labels: {{severity: {condition.severity.value}}}"
    yield "        annotations:"
    yield f'          summary: "{condition.summary}"'
    yield f'          runbook: "{condition.guide[0]}: {condition.guide[1]}"'


def _broken(expression: str) -> list[str]:
    """Return *expression* in lines that begin with ``or`` and ``/``."""
    return re.sub(r" (or|/) ", r"\n\1 ", expression).split("\n")


def with_condition_panels(dashboard: str) -> str:
    """Return *dashboard*, in JSON, with the present row of the conditions: one panel for each, with its threshold."""
    document = json.loads(dashboard)
    panels = [panel for panel in document["panels"] if panel["id"] < FIRST_ID]
    top = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    document["panels"] = [*panels, *_panels(top)]
    return json.dumps(document, indent=2) + "\n"


def _panels(top: int) -> Iterator[dict[str, Any]]:
    yield {
        "id": FIRST_ID, "type": "row", "title": "What needs attention, with its threshold", "collapsed": False, "panels": [],
        "gridPos": {"x": 0, "y": top, "w": _COLUMNS * _WIDTH, "h": 1},
    }  # fmt: skip
    for number, condition in enumerate(CONDITIONS):
        row, column = divmod(number, _COLUMNS)
        place = {"x": column * _WIDTH, "y": top + 1 + row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
        yield _panel(FIRST_ID + 1 + number, condition, place)


def _panel(id: int, condition: Condition, place: dict[str, int]) -> dict[str, Any]:
    check = condition.check
    # The colour changes at a number and above it; where the condition holds below it, the two are exchanged.
    colours = ("red", "green") if check.comparison == "<" or (check.comparison, check.threshold) == ("==", 0) else ("green", "red")
    steps_at = 1 if check.comparison == "==" and check.threshold == 0 else check.threshold
    defaults = {
        "unit": next((unit for name, unit in _UNITS.items() if f"{{{name}}}" in condition.sentence), "short"),
        "custom": {"thresholdsStyle": {"mode": "line"}},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": colours[0], "value": None}, {"color": colours[1], "value": steps_at}],
        },
    }
    return {
        "id": id,
        "type": "timeseries",
        "title": condition.name,
        "description": f"{condition.do} {condition.guide[0]}: {condition.guide[1]}.",
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {
                "refId": "A",
                "expr": check.measured,
                "legendFormat": " ".join(f"{{{{{label}}}}}" for label in check.by),
                "datasource": _DATASOURCE,
            }
        ],
    }


def with_alerts_table(page: str) -> str:
    """
    Return *page* with the present table of alerts.

    Raises:
        ValueError: *page* has no such table.
    """
    return with_table(page, _HEADS, alerts_table())


def alerts_table() -> str:
    """Return a reStructuredText table of all conditions."""
    return table(
        _HEADS,
        [
            (
                [f"``{each.name}``"],
                _wrapped(_plain(each), _MEANS_WIDTH),
                _wrapped(f"{each.do} :doc:`/{each.guide[0]}`: {each.guide[1]}.", _DO_WIDTH),
            )
            for each in CONDITIONS
        ],
    )


def _wrapped(text: str, width: int) -> list[str]:
    return wrap(text, width, break_on_hyphens=False, break_long_words=False)


def _plain(condition: Condition) -> str:
    """Return the sentence of *condition* with words in place of its placeholders, and its threshold in place of the value."""
    check = condition.check
    numbers = {"duration": f"{check.threshold:g} s", "share": f"{100 * check.threshold:g} %", "number": f"{check.threshold:g}"}
    names = {name: f"{'under' if check.comparison == '<' else 'over'} {number}" for name, number in numbers.items()}
    if not check.threshold:
        names = {"duration": "some time", "share": "some", "number": "one or more"}
    names["instance"] = "the process"
    plain = re.sub(r"\{(\w+)\}", lambda found: names.get(found[1], f"<{found[1]}>"), condition.sentence)
    return plain[:1].upper() + plain[1:]
