"""Declines, refunds and stock-outs."""

from __future__ import annotations

from tests.analytics.projections.conftest import Count
from tests.analytics.projections.story import captured, declined, refund_returned, refunded, rejected, reserved

DAY = "2026-03-02"


def test_declines_by_reason_have_what_was_not_paid(count: Count) -> None:
    """One row for each currency."""
    events = [
        declined(1, f"{DAY} 10:00:00", "card_declined", 1000),
        declined(2, f"{DAY} 11:00:00", "card_declined", 500),
        declined(3, f"{DAY} 11:00:00", "card_declined", 7, "USD"),
        declined(4, f"{DAY} 11:00:00", "expired_card", 10),
    ]
    assert count(events, "payment_declines") == [
        (f"{DAY} 00:00", "card_declined", "EUR", 2, 1500),
        (f"{DAY} 00:00", "card_declined", "USD", 1, 7),
        (f"{DAY} 00:00", "expired_card", "EUR", 1, 10),
    ]


def test_the_refund_rate_belongs_to_the_day_of_the_payment(count: Count) -> None:
    """Parts of a refund are added, one that came back is taken off again, and all count as one refunded payment."""
    events = [
        captured(1, f"{DAY} 10:00:00", 1000),
        refunded(1, "2026-03-03 10:00:00", 100),
        refunded(1, "2026-03-20 10:00:00", 150),
        captured(2, f"{DAY} 10:00:00", 1000),
        refunded(2, "2026-03-03 10:00:00", 1000),
        refund_returned(2, "2026-03-04 10:00:00", 1000),
        captured(3, "2026-03-03 10:00:00", 0),
        captured(4, f"{DAY} 10:00:00", 1000, "USD"),
    ]
    assert count(events, "refund_rate") == [
        (f"{DAY} 00:00", "EUR", 2, 1, 2000, 250, 0.125),
        (f"{DAY} 00:00", "USD", 1, 0, 1000, 0, 0.0),
        ("2026-03-03 00:00", "EUR", 1, 0, 0, 0, None),
    ]


def test_lost_revenue_takes_the_price_at_which_the_product_was_sold_at_that_time(count: Count) -> None:
    """The price before the first sale is that of the first sale; a price change counts from the order that has it."""
    events = [
        rejected(1, f"{DAY} 08:00:00", ("SKU-1", 2, 1)),
        reserved(2, f"{DAY} 09:00:00", lines=(("SKU-1", 1, 1000),)),
        rejected(3, f"{DAY} 10:00:00", ("SKU-1", 3, 0)),
        reserved(4, f"{DAY} 11:00:00", lines=(("SKU-1", 1, 1000),)),
        reserved(5, f"{DAY} 12:00:00", lines=(("SKU-1", 1, 800),)),
        rejected(6, f"{DAY} 13:00:00", ("SKU-1", 1, 0)),
        reserved(7, "2026-03-03 12:00:00", lines=(("SKU-1", 1, 900),), currency="USD"),
        rejected(8, "2026-03-03 13:00:00", ("SKU-1", 1, 0), ("SKU-9", 1000000, 0)),
        rejected(9, "2026-03-03 13:00:00", ("SKU-1", 1, 0), reason="unknown_product"),
    ]
    assert count(events, "stock_outs") == [
        (f"{DAY} 00:00", "SKU-1", "EUR", 3, 6, 5, 5800),
        ("2026-03-03 00:00", "SKU-1", "USD", 1, 1, 1, 900),
        ("2026-03-03 00:00", "SKU-9", None, 1, 1000000, 1000000, None),
    ]


def test_the_largest_loss_is_computed_without_overflow(count: Count) -> None:
    """A million pieces at the highest price are 10^24 minor units."""
    events = [reserved(1, f"{DAY} 09:00:00", lines=(("SKU-1", 1, 10**18),)), rejected(2, f"{DAY} 10:00:00", ("SKU-1", 10**6, 0))]
    assert count(events, "stock_outs") == [(f"{DAY} 00:00", "SKU-1", "EUR", 1, 10**6, 10**6, 10**24)]
