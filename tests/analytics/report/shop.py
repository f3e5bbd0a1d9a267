"""A small shop with a history of nine days: two currencies, refunds, declines, stock-outs and a customer who returns."""

from __future__ import annotations

__all__ = ["SINCE", "UNTIL", "shop_events", "shop_file"]

from datetime import UTC, datetime
from pathlib import Path

from app.analytics.analytics_file import AnalyticsFile
from app.analytics.projections.declaration import load
from app.analytics.projections.views import create_views
from app.messaging.event_registry import build_registry
from tests.analytics.projections.conftest import store
from tests.analytics.projections.story import (
    Happened,
    cancelled,
    created,
    declined,
    paid_order,
    refunded,
    rejected,
    reserved,
)

SINCE, UNTIL = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 3, 9, 12, tzinfo=UTC)


def shop_events() -> list[Happened]:
    """Return what happened from 1 to 9 March 2026."""
    events: list[Happened] = []
    for day in range(1, 10):
        at = f"2026-03-0{day} 1{day % 3}:30:00"
        events += paid_order(10 * day, at, customer=f"c-{day % 4}", lines=(("SKU-1", day, 1250), ("SKU-2", 1, 99)))
        events += paid_order(10 * day + 1, at, customer="c-9", lines=(("SKU-1", 1, 500),), currency="JPY")
        events += [created(10 * day + 2, at), rejected(10 * day + 2, at, ("<b>SKU & 3</b>", 2, 0))]
        events += [cancelled(10 * day + 2, at, "insufficient_stock")]
        events += [created(10 * day + 3, at), reserved(10 * day + 3, at), declined(10 * day + 3, at, "card_declined")]
        events += [cancelled(10 * day + 3, at, "payment_declined")]
    events += [refunded(10, "2026-03-02 09:00:00", 700), refunded(31, "2026-03-08 09:00:00", 500, "JPY")]
    events += [cancelled(31, "2026-03-08 08:00:00")]
    return events


def shop_file(path: Path) -> Path:
    """Create an analytics file with the events at *path*, and return *path*."""
    file = AnalyticsFile(path, build_registry(()))
    create_views(file.connection, load())
    store(file, shop_events())
    file.close()
    return path
