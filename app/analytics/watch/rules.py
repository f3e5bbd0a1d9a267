"""
The rules of the alerts: on a column of a projection, or any SQL that answers true or false.

A rule on a projection looks at one window. Where a value falls below the threshold, it is the newest window that has ended, because
one that has just begun is nearly empty; otherwise it is the newest window, because a count only grows. A window of a count without
a row had no event, so its value is zero.
"""

from __future__ import annotations

__all__ = ["BadRule", "Finding", "Rule", "evaluate", "parse_rule", "read_rules"]

import operator
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from attrs import frozen

from app.analytics.errors import AnalyticsError, QueryRefused
from app.analytics.projections import statements
from app.analytics.projections.declaration import Projection, UnknownProjection, find
from app.analytics.query import Answer

Ask = Callable[[str, int], Answer]
"""Takes a SQL statement and a number of rows, and returns the answer with at most so many rows."""

OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq, "!=": operator.ne,
}  # fmt: skip
ROWS_MAX = 10
"""Rows that an alert has."""

_SHORT = re.compile(r"([a-z0-9_]+)\.([a-z0-9_]+)\s*(<=|>=|!=|<|>|=)\s*(-?[0-9]+(?:\.[0-9]+)?)(?:\s+for\s+([0-9]+[smhd]))?")
_PERIOD = re.compile(r"([0-9]+)([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_STEPS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}
_FIELDS = {"name", "projection", "column", "operator", "threshold", "for", "where", "window", "sql", "url"}
_NUMBERS = ("INT", "DECIMAL", "DOUBLE", "FLOAT")


class BadRule(AnalyticsError):
    """A rule cannot be evaluated: correct it."""


@frozen(kw_only=True)
class Rule:
    """A rule: either *sql*, or a column of a projection with an operator and a threshold."""

    name: str
    sql: str | None = None
    projection: str = ""
    column: str = ""
    operator: str = ">"
    threshold: float = 0
    where: str | None = None
    """A SQL condition on the rows of the projection."""
    window: str = "newest"
    """``newest``, or ``ended`` for the newest window that is over."""
    for_seconds: int = 0
    """How long it must hold before it is reported."""
    url: str | None = None
    """The URL that it is reported to; None: the one that all rules share."""

    @property
    def condition(self) -> str:
        """The rule in one line."""
        if self.sql is not None:
            return self.sql
        return f"{self.projection}.{self.column} {self.operator} {self.threshold:g}"


@frozen
class Finding:
    """Whether a rule holds, and the rows for which it does."""

    holds: bool
    value: Any = None
    rows: tuple[Mapping[str, Any], ...] = ()


def parse_rule(text: str) -> Rule | None:
    """
    Return the rule that *text* is, ``revenue_per_hour.net < 100 for 10m`` or a SELECT, named by itself; None for a name.

    Raises:
        BadRule: It is neither.
    """
    text = text.strip()
    if match := _SHORT.fullmatch(text):
        projection, column, sign, threshold, period = match.groups()
        return _checked(
            Rule(
                name=text, projection=projection, column=column, operator=sign, threshold=float(threshold),
                window=_window(sign), for_seconds=_seconds(text, period or "0s"),
            )
        )  # fmt: skip
    if text[:6].upper() == "SELECT" or text[:4].upper() == "WITH":
        return Rule(name=text, sql=text)
    if re.fullmatch(r"[A-Za-z0-9_-]+", text):
        return None
    raise BadRule(f"{text!r} is no rule: write PROJECTION.COLUMN < NUMBER [for 10m], a SELECT, or the name of a rule in the file")


def read_rules(path: Path) -> dict[str, Rule]:
    """
    Return the rules of the TOML file at *path*, by name.

    Raises:
        BadRule: The file cannot be read, or a rule is incomplete; the message names it.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRule(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRule(f"{path}: is not TOML: {error}") from None
    entries = content.get("rule")
    if not isinstance(entries, list) or set(content) != {"rule"}:
        raise BadRule(f"{path}: must have tables [[rule]] and nothing else")
    rules: dict[str, Rule] = {}
    for number, entry in enumerate(entries, 1):
        try:
            rule = _from_table(entry)
        except BadRule as error:
            raise BadRule(f"{path}: rule {number}: {error}") from None
        if rule.name in rules:
            raise BadRule(f"{path}: rule {number}: there is another rule {rule.name!r}")
        rules[rule.name] = rule
    return rules


def evaluate(rule: Rule, ask: Ask, projections: Mapping[str, Projection], now: datetime) -> Finding:
    """
    Return whether *rule* holds at *now*.

    Raises:
        BadRule: The SQL is wrong, or there is no such projection or column.
        BadProjection: The SQL of the projection is wrong.
        FileUnusable, FileInUse: The file cannot be queried now.
    """
    if rule.sql is not None:
        return _evaluate_sql(rule.sql, ask)
    try:
        projection = find(projections, rule.projection)
    except UnknownProjection as error:
        raise BadRule(str(error)) from None
    window, is_exact = _chosen_window(rule, projection, now)
    conditions = f"{window} AND ({rule.where})" if rule.where else window
    statement = statements.condition(projections, projection, conditions)
    try:
        answer = ask(statement.sql, 1_000)
    except QueryRefused as error:
        if rule.where:
            raise BadRule(f"{rule.name}: where: {str(error).partition(chr(10))[0]}") from None
        raise statement.error(str(error)) from None
    if rule.column not in answer.columns:
        raise BadRule(f"{rule.name}: {rule.projection} has no column {rule.column!r}; it has {', '.join(answer.columns)}")
    place = answer.columns.index(rule.column)
    if not any(part in answer.types[place] for part in _NUMBERS):
        raise BadRule(f"{rule.name}: {rule.projection}.{rule.column} is {answer.types[place]}, and no number")
    if not answer.rows and is_exact and answer.types[place] != "DOUBLE":
        return Finding(OPERATORS[rule.operator](0, rule.threshold), 0)
    compare = OPERATORS[rule.operator]
    found = [row for row in answer.rows if row[place] is not None and compare(row[place], rule.threshold)]
    rows = tuple(dict(zip(answer.columns, row, strict=True)) for row in found[:ROWS_MAX])
    return Finding(bool(found), found[0][place] if found else None, rows)


def _evaluate_sql(sql: str, ask: Ask) -> Finding:
    try:
        answer = ask(sql, ROWS_MAX)
    except QueryRefused as error:
        raise BadRule(f"{sql}: {str(error).partition(chr(10))[0]}") from None
    if not answer.types or answer.types[0] != "BOOLEAN":
        found = answer.types[0] if answer.types else "nothing"
        raise BadRule(f"{sql}: the first column must be true or false, and is {found}")
    rows = tuple(dict(zip(answer.columns, row, strict=True)) for row in answer.rows if row[0])
    return Finding(bool(rows), True if rows else None, rows)


def _chosen_window(rule: Rule, projection: Projection, now: datetime) -> tuple[str, bool]:
    """Return the condition for the window, and whether it is one that is known without a row."""
    time, step = projection.time, projection.step
    if rule.window == "newest":
        return f"{time} = (SELECT max({time}) FROM {projection.name})", False
    moment = f"date_trunc('{step}', TIMESTAMPTZ '{now.astimezone(UTC).isoformat()}')"
    if projection.window.startswith("tumbling") and step in _STEPS and rule.column in _counts(projection):
        return f"{time} = {moment} - INTERVAL '1 {step}'", True
    return f"{time} = (SELECT max({time}) FROM {projection.name} WHERE {time} < {moment})", False


def _counts(projection: Projection) -> set[str]:
    """Return the columns of *projection* that are zero in a window without a row."""
    drawn = () if projection.keys else projection.chart.y
    return {*projection.sums, *projection.money, *drawn} - {*projection.ratios}


def _from_table(entry: Any) -> Rule:
    if not isinstance(entry, dict):
        raise BadRule("must be a table")
    if unknown := sorted(set(entry) - _FIELDS):
        raise BadRule(f"{', '.join(unknown)}: unknown; a rule has {', '.join(sorted(_FIELDS))}")
    name = entry.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise BadRule("name: must be 1 to 64 letters, digits, - and _")
    for field in _FIELDS - {"threshold"}:
        if field in entry and not isinstance(entry[field], str):
            raise BadRule(f"{name}: {field}: must be a text")
    period = _seconds(name, entry.get("for", "0s"))
    url = entry.get("url")
    if "sql" in entry:
        if others := sorted(set(entry) & {"projection", "column", "operator", "threshold", "where", "window"}):
            raise BadRule(f"{name}: sql: cannot stand beside {', '.join(others)}")
        return _checked(Rule(name=name, sql=entry["sql"], for_seconds=period, url=url))
    if missing := [field for field in ("projection", "column", "operator", "threshold") if field not in entry]:
        raise BadRule(f"{name}: lacks {', '.join(missing)}")
    threshold = entry["threshold"]
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise BadRule(f"{name}: threshold: must be a number")
    return _checked(
        Rule(
            name=name, projection=entry["projection"], column=entry["column"], operator=entry["operator"], threshold=threshold,
            where=entry.get("where"), window=entry.get("window", _window(entry["operator"])), for_seconds=period, url=url,
        )
    )  # fmt: skip


def _checked(rule: Rule) -> Rule:
    if rule.operator not in OPERATORS:
        raise BadRule(f"{rule.name}: operator: must be one of {' '.join(OPERATORS)}")
    if rule.window not in ("newest", "ended"):
        raise BadRule(f"{rule.name}: window: must be newest or ended")
    if rule.url is not None and not rule.url.startswith(("http://", "https://")):
        raise BadRule(f"{rule.name}: url: must begin with http:// or https://")
    return rule


def _window(sign: str) -> str:
    return "ended" if sign in ("<", "<=") else "newest"


def _seconds(name: str, text: str) -> int:
    match = _PERIOD.fullmatch(text)
    if match is None:
        raise BadRule(f"{name}: for: must be a number of seconds, minutes, hours or days, such as 10m")
    return int(match[1]) * _UNITS[match[2]]
