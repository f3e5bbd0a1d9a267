"""The figures of a run, and how its progress is displayed."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.loadtest.progress import Bar, Lines
from app.cli.loadtest.report import Progress, Tally, percentiles


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_a_percentile_is_a_value_that_occurred_with_that_share_at_or_below(milliseconds: list[int]) -> None:
    """Exact, by nearest rank: the smallest value that at least p percent of the values do not exceed."""
    found = percentiles([value / 1000 for value in milliseconds])
    for percent, value in ((50, found["p50"]), (95, found["p95"]), (99, found["p99"])):
        assert value is not None
        assert round(value) in milliseconds
        assert 100 * sum(other <= round(value) for other in milliseconds) >= percent * len(milliseconds)
        assert 100 * sum(other < round(value) for other in milliseconds) < percent * len(milliseconds)


def test_a_run_without_orders_has_no_percentiles_and_no_rates() -> None:
    """A percentile without a measurement is null, not 0 ms."""
    result = Tally(orders=5).result()
    assert result["accept_ms"] == {"p50": None, "p95": None, "p99": None}
    assert (result["seconds"], result["accepted_per_s"], result["completed_per_s"]) == (0.0, 0.0, 0.0)


def test_the_seconds_run_from_the_first_post_to_the_latest_end() -> None:
    """The order that was accepted last is not always the one that ends last."""
    tally = Tally(orders=3, first_sent_at=100.0)
    tally.accept(100.0, 101.0)
    tally.accept(101.0, 102.0)
    tally.end(is_confirmed=True, sent_at=100.0, answered_at=101.0, seconds=4.0)
    tally.end(is_confirmed=False, sent_at=101.0, answered_at=102.0, seconds=1.0)
    result = tally.result()
    assert result["seconds"] == 5.0
    assert (result["accepted_per_s"], result["completed_per_s"]) == (1.0, 0.2)
    assert result["complete_ms"] == {"p50": 2000.0, "p95": 5000.0, "p99": 5000.0}


def test_a_server_clock_that_goes_back_ends_no_order_before_it_was_accepted() -> None:
    """A negative difference counts as 0."""
    tally = Tally(orders=1, first_sent_at=0.0)
    tally.accept(0.0, 1.0)
    tally.end(is_confirmed=True, sent_at=0.0, answered_at=1.0, seconds=-3600.0)
    assert tally.result()["complete_ms"]["p50"] == 1000.0


def test_without_a_terminal_a_line_is_printed_every_five_seconds() -> None:
    """So the log of a long run stays readable."""
    stream = io.StringIO()
    lines = Lines(stream)
    for quarter in range(4 * 11):
        lines(Progress(orders=100, placed=40, confirmed=30, cancelled=3, seconds=quarter / 4))
    assert stream.getvalue().splitlines() == [
        "5 s: placed 40 of 100, seen confirmed 30, cancelled 3, 8 orders/s",
        "10 s: placed 40 of 100, seen confirmed 30, cancelled 3, 4 orders/s",
    ]


def test_a_terminal_shows_a_bar_of_the_placed_orders() -> None:
    """The bar also shows how many are known to have ended."""
    stream = io.StringIO()
    bar = Bar(100, stream)
    bar(Progress(orders=100, placed=40, confirmed=30, cancelled=3, seconds=1.0))
    bar.close()
    assert "40/100" in stream.getvalue()
    assert "seen confirmed 30, cancelled 3" in stream.getvalue()


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_the_rate_is_0_before_any_time_has_passed(seconds: float) -> None:
    """The first report may come at 0 seconds."""
    assert Progress(orders=1, placed=1, confirmed=1, cancelled=0, seconds=seconds).placed_per_s == 0.0
