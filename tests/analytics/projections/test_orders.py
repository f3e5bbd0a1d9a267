"""What orders go through: funnel, time in each state, cancellations, anomalies, and their customers."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tests.analytics.projections.conftest import Count
from tests.analytics.projections.story import (
    Happened,
    cancelled,
    captured,
    confirmed,
    created,
    declined,
    paid_order,
    rejected,
    reserved,
)

pytestmark = pytest.mark.slow

DAY = "2026-03-02"


def test_each_step_of_the_funnel_has_the_orders_that_reached_it(count: Count) -> None:
    """An order belongs to the day on which it was placed, however late the step is."""
    events = [
        *paid_order(1, f"{DAY} 10:00:00"),
        *paid_order(2, f"{DAY} 10:00:00"),
        cancelled(2, "2026-03-09 10:00:00"),
        created(3, f"{DAY} 11:00:00"),
        rejected(3, f"{DAY} 11:00:01", ("SKU-1", 1, 0)),
        cancelled(3, f"{DAY} 11:00:01", "insufficient_stock"),
        created(4, f"{DAY} 12:00:00"),
        reserved(4, f"{DAY} 12:00:00"),
        declined(4, f"{DAY} 12:00:00", "card_declined"),
        created(5, f"{DAY} 23:59:59"),
        reserved(5, "2026-03-03 00:00:00"),
        captured(5, "2026-03-03 00:00:01"),
    ]
    steps = [(1, "placed", 5), (2, "reserved", 4), (3, "paid", 3), (4, "confirmed", 2), (5, "kept", 1)]
    assert count(events, "funnel") == [(f"{DAY} 00:00", *step) for step in steps]


def test_the_percentiles_of_the_time_in_each_state(count: Count) -> None:
    """101 orders stay 0 to 100 seconds reserved: p50 is 50, p95 is 95, p99 is 99."""
    start = datetime(2026, 3, 2, 10, 0)
    events: list[Happened] = []
    for n in range(101):
        events += [created(n, f"{DAY} 09:59:50"), reserved(n, f"{DAY} 10:00:00")]
        events.append(confirmed(n, str(start + timedelta(seconds=n))))
    assert count(events, "time_in_state") == [
        (f"{DAY} 00:00", "placed to confirmed", 101, 60.0, 105.0, 109.0),
        (f"{DAY} 00:00", "processing", 101, 10.0, 10.0, 10.0),
        (f"{DAY} 00:00", "reserved", 101, 50.0, 95.0, 99.0),
    ]


def test_the_states_of_cancelled_orders(count: Count) -> None:
    """
    A state ends with the cancellation, too.

    An order that was cancelled before inventory reserved its stock never was reserved. Clocks that differ make no negative
    time.
    """
    events = [
        created(1, f"{DAY} 10:00:00"),
        cancelled(1, f"{DAY} 10:00:05"),
        reserved(1, f"{DAY} 10:00:06"),
        created(2, f"{DAY} 10:00:00"),
        reserved(2, f"{DAY} 09:59:59"),
        cancelled(2, f"{DAY} 10:00:09"),
        confirmed(3, f"{DAY} 10:00:00"),
        cancelled(3, f"{DAY} 10:01:00"),
    ]
    assert count(events, "time_in_state") == [
        (f"{DAY} 00:00", "confirmed, then cancelled", 1, 60.0, 60.0, 60.0),
        (f"{DAY} 00:00", "processing", 2, 2.5, 4.75, 4.95),
        (f"{DAY} 00:00", "reserved", 1, 10.0, 10.0, 10.0),
    ]


def test_cancellations_by_reason_tell_which_orders_had_been_confirmed(count: Count) -> None:
    """Both are counted on the day of the cancellation."""
    events = [
        *paid_order(1, f"{DAY} 10:00:00"),
        cancelled(1, "2026-03-03 10:00:00"),
        created(2, "2026-03-03 10:00:00"),
        cancelled(2, "2026-03-03 10:01:00"),
        cancelled(3, "2026-03-03 10:01:00", "payment_declined"),
    ]
    assert count(events, "cancellations") == [
        ("2026-03-03 00:00", "payment_declined", 1, 0),
        ("2026-03-03 00:00", "requested", 2, 1),
    ]


def orders(at: datetime, number: int) -> list[Happened]:
    """*number* orders are placed at *at*."""
    return [created(n, str(at)) for n in range(number)]


@pytest.mark.parametrize(
    ("former", "now", "z"),
    [
        ((100, 110, 90), 160, 6.0),
        ((100, 110, 90), 40, -6.0),
        ((4, 4, 4), 4, 0.0),
        ((4, 4, 4), 10, 3.0),
        ((0, 0, 0), 3, 3.0),
        ((100, 100, 100, 0, 0, 0, 0, 0, 0, 0, 0), 5, 5.0),
        ((4, 4), 40, None),
    ],
    ids=["many", "few", "as ever", "equal weeks", "never before", "only eight weeks", "too few weeks"],
)
def test_an_hour_is_compared_with_the_same_hour_of_former_weeks(
    count: Count, former: tuple[int, ...], now: int, z: float | None
) -> None:
    """The deviation is at least the square root of the mean; three weeks are needed, and the last eight count."""
    hour = datetime(2026, 3, 2, 10, 30)
    events = []
    for weeks, number in enumerate(reversed(former), 1):
        events += orders(hour - timedelta(weeks=weeks), number)
    events += [created(0, str(hour - timedelta(weeks=len(former), hours=1))), *orders(hour, now), created(0, str(hour + timedelta(hours=1)))]
    (row,) = (row for row in count(events, "order_rate_anomaly") if row[0] == f"{DAY} 10:00")
    assert row[1:3] == (now, min(8, len(former)))
    assert row[4] == z


def test_hours_without_orders_are_rows_and_the_hour_of_the_newest_order_is_none(count: Count) -> None:
    """Silence is an anomaly, too; an hour that is not over would always look silent."""
    found = count([created(1, f"{DAY} 10:00:00"), created(2, f"{DAY} 13:00:00")], "order_rate_anomaly")
    assert [row[:2] for row in found] == [(f"{DAY} 10:00", 1), (f"{DAY} 11:00", 0), (f"{DAY} 12:00", 0)]


def test_customers_return_in_the_weeks_after_their_first_order(count: Count) -> None:
    """A week begins on Monday; two orders in a week are one returning customer."""
    first = [("c-1", "2026-03-02"), ("c-2", "2026-03-08"), ("c-1", "2026-03-03")]
    later = [("c-1", "2026-03-09"), ("c-1", "2026-03-10"), ("c-3", "2026-03-09"), ("c-2", "2026-03-30")]
    events = [
        confirmed(n, f"{day} 12:00:00", customer=customer) for n, (customer, day) in enumerate((*first, *later))
    ]
    assert count(events, "returning_customers") == [
        ("2026-03-02 00:00", 0, 2, 2, 1.0),
        ("2026-03-02 00:00", 1, 1, 2, 0.5),
        ("2026-03-02 00:00", 4, 1, 2, 0.5),
        ("2026-03-09 00:00", 0, 1, 1, 1.0),
    ]


def test_a_session_ends_after_30_minutes_without_an_order_of_the_customer(count: Count) -> None:
    """
    30 minutes later is the same session, a second more is the next one; another customer has sessions of its own.

    A session over midnight belongs to the day on which it began.
    """
    events = [
        created(1, f"{DAY} 10:00:00"),
        created(2, f"{DAY} 10:30:00"),
        created(3, f"{DAY} 11:00:01"),
        created(4, f"{DAY} 10:15:00", customer="c-2"),
        created(5, f"{DAY} 23:50:00", customer="c-3"),
        created(6, "2026-03-03 00:10:00", customer="c-3"),
    ]
    assert count(events, "customer_sessions") == [(f"{DAY} 00:00", 4, 6, 2, 1.5)]
