"""The charts: round ticks, gaps, and scales that are not shared."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from app.analytics.projections.declaration import load
from app.analytics.query import Answer
from app.analytics.report.charts import Line, bars, lines, ticks
from app.analytics.report.content import Section
from app.analytics.report.page import chart_of

_values = st.floats(-1e18, 1e18, allow_nan=False)


@given(_values, _values)
@example(0.0, 5e-324)
@example(0.0, 1e-299)
def test_ticks_enclose_the_values_in_equal_round_steps(first: float, second: float) -> None:
    """From two to seven of them."""
    low, high = min(first, second, 0), max(first, second, 0)
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert found[0] <= low + (high - low) * 1e-8
    assert found[-1] >= high - (high - low) * 1e-8
    assert found == sorted(set(found))


def test_ticks_are_numbers_that_a_reader_expects() -> None:
    """Steps of 1, 2 or 5 times a power of ten."""
    assert ticks(0, 97) == [0, 50, 100]
    assert ticks(0, 0) == [0, 0.5, 1.0]
    assert ticks(-3, 8) == [-5, 0, 5, 10]


def test_a_value_that_is_missing_interrupts_the_line() -> None:
    """A single point between two gaps is a dot, because a line of one point is invisible."""
    drawn = str(lines("t", [Line("", [(0, 1.0), (1, 2.0), (2, None), (3, 4.0)])], str, str, []))
    assert len(re.findall("M", re.findall(r'<path class="line line-1" d="([^"]*)"', drawn)[0])) == 1
    assert drawn.count("<circle") == 1


def test_a_chart_without_values_is_empty() -> None:
    """Neither kind divides by zero."""
    assert lines("t", [], str, str, []) == ""
    assert bars("t", [], str) == ""
    assert bars("t", [("a", 0.0)], str)


def section(name: str, columns: dict[str, str], *rows: list[Any]) -> Section:
    """A section with *rows*, the newest first."""
    answer = Answer(list(columns), list(columns.values()), list(rows), True)
    return Section(load()[name], answer, None)


COUNTS = {"hour": "TIMESTAMP WITH TIME ZONE", "placed": "BIGINT", "confirmed": "BIGINT", "cancelled": "BIGINT"}
TIMES = {"day": "TIMESTAMP WITH TIME ZONE", "state": "VARCHAR", "p95_seconds": "DOUBLE"}


def test_an_hour_without_a_row_had_no_orders() -> None:
    """Counts of tumbling windows are zero where nothing happened, so the line goes down to zero."""
    drawn = str(chart_of(section("orders_per_hour", COUNTS, ["2026-03-02T13:00:00Z", 4, 4, 4], ["2026-03-02T10:00:00Z", 4, 4, 4])))
    (path,) = set(re.findall(r'class="line line-[123]" d="(M[^"]{20,})"', drawn))
    assert [point.split()[1] for point in path[1:].split("L")] == ["12.0", "212.0", "212.0", "12.0"]


def test_a_day_without_a_row_has_no_percentile() -> None:
    """A time is unknown where no order left the state, and not zero."""
    drawn = str(chart_of(section("time_in_state", TIMES, ["2026-03-05T00:00:00Z", "s", 4.0], ["2026-03-02T00:00:00Z", "s", 4.0])))
    assert [len(path.split("L")) for path in re.findall(r'class="line line-1" d="(M[^"]*)"', drawn)] == [2]


def test_lines_of_very_different_size_have_a_chart_each() -> None:
    """Seconds in one state, hours in another: the first would look like zero."""
    rows = [["2026-03-02T00:00:00Z", "confirmed, then cancelled", 18000.0], ["2026-03-02T00:00:00Z", "reserved", 2.0]]
    assert str(chart_of(section("time_in_state", TIMES, *rows))).count("<svg class=") == 2
    rows[0][2] = 20.0
    assert str(chart_of(section("time_in_state", TIMES, *rows))).count("<svg class=") == 1
