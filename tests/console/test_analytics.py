"""The screen Analytics."""

from __future__ import annotations

import json

from app.analytics.projections.declaration import load
from app.analytics.query import Answer
from app.analytics.report.content import Section
from app.web.console.screens.analytics import shown_result
from tests.console.conftest import Served


async def test_without_a_process_that_counts_the_screen_shows_how_to_start_it(served: Served) -> None:
    """All projections are listed with their questions; one that does not exist is 404."""
    viewer = await served.as_role("viewer")
    for path in ("/console/analytics", "/console/analytics?show=orders_per_hour&period=7d"):
        seen = await viewer.get(path)
        assert seen.status == 200
        assert "python -m app analytics run" in seen.words
        assert "How much was sold in each day" in seen.words
    assert (await viewer.get("/console/analytics?show=none")).status == 404
    assert (await viewer.get("/console/analytics?period=none")).status == 404
    assert (await (await served.as_role("stock")).get("/console/analytics")).status == 403


def answer(*rows: tuple[str, str, int]) -> Answer:
    """Return rows of revenue per day: the day, the currency, and what is left."""
    values = [[day, currency, 1, net, 0, net] for day, currency, net in rows]
    return Answer(["day", "currency", "orders", "revenue", "refunded", "net"], [], values, True)


def test_a_projection_over_time_is_a_curve_with_a_line_for_each_of_its_series() -> None:
    """The oldest time first, nothing where a series has no row, and amounts with their currency in the table."""
    rows = answer(("2026-03-02T00:00:00Z", "EUR", 300), ("2026-03-02T00:00:00Z", "USD", 50), ("2026-03-01T00:00:00Z", "EUR", 100))
    found = shown_result(Section(load()["revenue_per_day"], rows, None))
    chart = found["chart"]
    assert json.loads(chart.labels) == ["net EUR", "net USD"]
    assert json.loads(chart.data) == [[1772323200, 1772409600], [100, 300], [None, 50]]
    assert found["tables"][0]["rows"][0][-1] == {"kind": "money", "value": {"amount": 300, "currency": "EUR"}}


def test_one_time_alone_is_no_curve_and_neither_is_a_projection_over_something_else() -> None:
    """They are shown as tables."""
    one = answer(("2026-03-02T00:00:00Z", "EUR", 300))
    assert shown_result(Section(load()["revenue_per_day"], one, None))["chart"] is None
    returning = load()["returning_customers"]
    columns = [*dict.fromkeys([returning.time, returning.chart.x, *returning.chart.y])]
    rows = Answer(columns, [], [[n] * len(columns) for n in range(3)], True)
    assert shown_result(Section(returning, rows, None))["chart"] is None
