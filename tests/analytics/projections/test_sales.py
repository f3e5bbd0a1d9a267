"""Orders, revenue and products: tumbling and sliding windows, money of several currencies, refunds, late events."""

from __future__ import annotations

from tests.analytics.projections.conftest import Count
from tests.analytics.projections.story import (
    cancelled,
    captured,
    confirmed,
    created,
    paid_order,
    refund_returned,
    refunded,
    reserved,
)

DAY = "2026-03-02"


def test_orders_per_minute_counts_each_event_in_its_own_minute(count: Count) -> None:
    """An order that is placed in one minute and confirmed in the next counts in both."""
    events = [
        created(1, f"{DAY} 10:00:59"),
        confirmed(1, f"{DAY} 10:01:00"),
        created(2, f"{DAY} 10:00:00"),
        cancelled(2, f"{DAY} 10:01:30"),
    ]
    assert count(events, "orders_per_minute") == [(f"{DAY} 10:00", 2, 0, 0), (f"{DAY} 10:01", 0, 1, 1)]


def test_orders_per_hour_and_day_are_those_of_their_minutes(count: Count) -> None:
    """A day begins at midnight UTC."""
    events = [created(1, f"{DAY} 23:59:59"), created(2, "2026-03-03 00:00:00"), created(3, "2026-03-03 00:59:00")]
    assert count(events, "orders_per_hour") == [(f"{DAY} 23:00", 1, 0, 0), ("2026-03-03 00:00", 2, 0, 0)]


def test_orders_per_day_has_no_row_for_a_day_without_events(count: Count) -> None:
    """Days without orders are no rows, so that a year of silence needs none."""
    events = [created(1, f"{DAY} 23:59:59"), created(2, "2026-03-05 00:00:00")]
    assert count(events, "orders_per_day") == [(f"{DAY} 00:00", 1, 0, 0), ("2026-03-05 00:00", 1, 0, 0)]


def test_revenue_of_two_currencies_is_never_added(count: Count) -> None:
    """Each currency has rows of its own."""
    events = [*paid_order(1, f"{DAY} 10:00:00"), *paid_order(2, f"{DAY} 10:00:10", currency="USD")]
    assert count(events, "revenue_per_minute") == [
        (f"{DAY} 10:00", "EUR", 1, 1000, 0, 1000),
        (f"{DAY} 10:00", "USD", 1, 1000, 0, 1000),
    ]


def test_refunds_in_parts_reduce_the_revenue_of_the_hour_in_which_they_happen(count: Count) -> None:
    """The hour of the sale keeps its revenue; two parts of a refund count where each happened."""
    events = [
        *paid_order(1, f"{DAY} 10:00:00"),
        refunded(1, f"{DAY} 11:10:00", 300),
        refunded(1, f"{DAY} 11:50:00", 200),
        refunded(1, f"{DAY} 12:00:00", 500),
    ]
    assert count(events, "revenue_per_hour") == [
        (f"{DAY} 10:00", "EUR", 1, 1000, 0, 1000),
        (f"{DAY} 11:00", "EUR", 0, 0, 500, -500),
        (f"{DAY} 12:00", "EUR", 0, 0, 500, -500),
    ]


def test_an_order_cancelled_after_confirmation_leaves_no_net_revenue(count: Count) -> None:
    """Its refund takes the revenue back."""
    events = [*paid_order(1, f"{DAY} 10:00:00"), cancelled(1, f"{DAY} 11:00:00"), refunded(1, f"{DAY} 11:00:01", 1000)]
    assert count(events, "revenue_per_day") == [(f"{DAY} 00:00", "EUR", 1, 1000, 1000, 0)]


def test_the_refund_of_an_order_that_was_never_confirmed_is_no_loss(count: Count) -> None:
    """A charge that arrives after the cancellation was never revenue."""
    events = [
        created(1, f"{DAY} 10:00:00"),
        cancelled(1, f"{DAY} 10:15:00", "timed_out"),
        captured(1, f"{DAY} 10:15:01"),
        refunded(1, f"{DAY} 10:15:02", 1000),
    ]
    assert count(events, "revenue_per_day") == []


def test_a_refund_that_came_back_is_revenue_again(count: Count) -> None:
    """A provider reports a refund, and later that it has failed."""
    events = [*paid_order(1, f"{DAY} 10:00:00"), refunded(1, f"{DAY} 10:01:00", 400), refund_returned(1, f"{DAY} 10:02:00", 400)]
    assert count(events, "revenue_per_day") == [(f"{DAY} 00:00", "EUR", 1, 1000, 0, 1000)]


def test_the_largest_amounts_are_summed_without_overflow(count: Count) -> None:
    """Eleven amounts of 10^18 are more than 64 bits hold."""
    lines = (("SKU-1", 1, 10**18),)
    events = [event for n in range(11) for event in paid_order(n, f"{DAY} 10:00:00", lines=lines)]
    assert count(events, "revenue_per_day") == [(f"{DAY} 00:00", "EUR", 11, 11 * 10**18, 0, 11 * 10**18)]


def test_the_sliding_hour_has_60_minutes(count: Count) -> None:
    """A sale leaves the window of the minute that begins 60 minutes after its own."""
    events = [
        *paid_order(1, f"{DAY} 10:00:30"),
        *paid_order(2, f"{DAY} 10:59:30"),
        *paid_order(3, f"{DAY} 11:00:00", lines=(("SKU-1", 1, 500),)),
        *paid_order(4, f"{DAY} 10:30:00", currency="USD"),
    ]
    assert count(events, "revenue_last_hour") == [
        (f"{DAY} 10:00", "EUR", 1, 1000),
        (f"{DAY} 10:30", "USD", 1, 1000),
        (f"{DAY} 10:59", "EUR", 2, 2000),
        (f"{DAY} 11:00", "EUR", 2, 1500),
    ]


def test_top_products_have_the_price_of_the_order(count: Count) -> None:
    """The same product at two prices is one row; an order that is cancelled later leaves it."""
    events = [
        *paid_order(1, f"{DAY} 10:00:00", lines=(("SKU-1", 2, 1000), ("SKU-2", 1, 50))),
        *paid_order(2, f"{DAY} 11:00:00", lines=(("SKU-1", 3, 900),)),
        *paid_order(3, f"{DAY} 12:00:00", lines=(("SKU-1", 5, 900),)),
        cancelled(3, "2026-03-04 12:00:00"),
        reserved(4, f"{DAY} 12:00:00"),
    ]
    assert count(events, "top_products") == [
        (f"{DAY} 00:00", "SKU-1", "EUR", 2, 5, 4700),
        (f"{DAY} 00:00", "SKU-2", "EUR", 1, 1, 50),
    ]


def test_a_late_event_counts_in_the_window_of_its_own_time(count: Count) -> None:
    """It is stored last, a day later, and its hour has it."""
    events = [*paid_order(1, "2026-03-03 10:00:00"), *paid_order(2, f"{DAY} 09:59:59")]
    assert count(events, "revenue_per_hour") == [
        (f"{DAY} 09:00", "EUR", 1, 1000, 0, 1000),
        ("2026-03-03 10:00", "EUR", 1, 1000, 0, 1000),
    ]
