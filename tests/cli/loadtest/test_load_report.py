"""The numbers that follow from what a run has seen, and how they are shown."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.loadtest.progress import Bar, Lines
from app.cli.loadtest.report import Progress, Tally, percentiles


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_a_percentile_is_a_value_that_occurred_with_that_share_at_or_below(milliseconds: list[int]) -> None:
    """Exact, by nearest rank: the smallest value that p percent do not exceed."""
    found = percentiles([value / 1000 for value in milliseconds])
    for percent, value in ((50, found["p50"]), (95, found["p95"]), (99, found["p99"])):
        assert value is not None
        assert round(value) in milliseconds
        assert 100 * sum(other <= round(value) for other in milliseconds) >= percent * len(milliseconds)
        assert 100 * sum(other < round(value) for other in milliseconds) < percent * len(milliseconds)


def test_a_run_without_orders_has_no_percentiles_and_no_rates() -> None:
    """Nothing measured is null, not zero milliseconds."""
    result = Tally(orders=5).result()
    assert result["accept_ms"] == {"p50": None, "p95": None, "p99": None}
    assert (result["seconds"], result["accepted_per_s"], result["completed_per_s"]) == (0.0, 0.0, 0.0)


def test_seconds_run_from_the_first_post_to_the_latest_end() -> None:
    """The latest end is not always that of the order accepted last."""
    tally = Tally(orders=3, first_sent_at=100.0)
    tally.accept(100.0, 101.0)
    tally.accept(101.0, 102.0)
    tally.end(is_confirmed=True, sent_at=100.0, answered_at=101.0, seconds=4.0)
    tally.end(is_confirmed=False, sent_at=101.0, answered_at=102.0, seconds=1.0)
    result = tally.result()
    assert result["seconds"] == 5.0
    assert (result["accepted_per_s"], result["completed_per_s"]) == (1.0, 0.2)
    assert result["complete_ms"] == {"p50": 2000.0, "p95": 5000.0, "p99": 5000.0}


def test_a_server_clock_that_goes_back_makes_no_order_end_before_it_was_accepted() -> None:
    """A negative difference counts as none."""
    tally = Tally(orders=1, first_sent_at=0.0)
    tally.accept(0.0, 1.0)
    tally.end(is_confirmed=True, sent_at=0.0, answered_at=1.0, seconds=-3600.0)
    assert tally.result()["complete_ms"]["p50"] == 1000.0


def test_without_a_terminal_there_is_a_line_every_five_seconds() -> None:
    """A log of a long run stays readable."""
    stream = io.StringIO()
    show = Lines(stream)
    for quarter in range(4 * 11):
        show(Progress(orders=100, placed=40, confirmed=30, cancelled=3, seconds=quarter / 4))
    assert stream.getvalue().splitlines() == [
        "5 s: placed 40 of 100, seen confirmed 30, cancelled 3, 8 orders/s",
        "10 s: placed 40 of 100, seen confirmed 30, cancelled 3, 4 orders/s",
    ]


def test_on_a_terminal_there_is_a_bar_of_the_orders_that_are_placed() -> None:
    """Beside it stands what is known of their ends."""
    stream = io.StringIO()
    bar = Bar(100, stream)
    bar(Progress(orders=100, placed=40, confirmed=30, cancelled=3, seconds=1.0))
    bar.close()
    assert "40/100" in stream.getvalue()
    assert "seen confirmed 30, cancelled 3" in stream.getvalue()


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_time_is_no_rate(seconds: float) -> None:
    """The first report comes before any time has passed."""
    assert Progress(orders=1, placed=1, confirmed=1, cancelled=0, seconds=seconds).placed_per_s == 0.0
