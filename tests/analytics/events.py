"""Events as the histories have them, for the tests of the analytics."""

from __future__ import annotations

__all__ = ["CONTRACTS", "START", "event", "example", "incoming", "order_events"]

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from app.analytics.events import Incoming, arrow_table
from app.messaging.event_registry import build_registry
from app.storage.archive.history_content import HistoryEvent
from bus.ids import derived_id, id_lower_bound
from bus.subjects import without_lane

CONTRACTS = build_registry(())
START = datetime(2026, 3, 1, 12, tzinfo=UTC)

_CONFIRMED = ("orders.created.v2", "inventory.reserved.v1", "payments.charge_requested.v1", "payments.captured.v1", "orders.confirmed.v1")


def example(subject: str) -> dict[str, Any]:
    """Return the first example of the schema of *subject*."""
    found: dict[str, Any] = dict(CONTRACTS[subject].schema["examples"][0])
    return found


def event(
    subject: str, id: str, *, at: datetime = START, seq: int = 1, data: Mapping[str, Any] | None = None, key: str = "k", cause: str = "c"
) -> HistoryEvent:
    """Return an event under *subject*; its data is the example of the schema, with *data* in place of some members."""
    plain = without_lane(subject)
    members = {**(example(plain) if plain in CONTRACTS else {}), **(data or {})}
    return HistoryEvent(seq, subject.split(".")[0], id, cause, "corr", subject, key, at.isoformat(), members)


def order_events(number: int, *, at: datetime | None = None, lane: str = "") -> list[HistoryEvent]:
    """Return the five events of the confirmed order *number*, a second apart; *at* is when it was placed."""
    placed = START + timedelta(seconds=number) if at is None else at
    order_id = f"{id_lower_bound(placed)}-7000-8000-{number:012x}"
    found = []
    for step, subject in enumerate(_CONFIRMED):
        id = derived_id(order_id, step)
        moment = placed + timedelta(seconds=step)
        data = {"order_id": order_id}
        found.append(event(subject + lane, id, at=moment, seq=number * 10 + step, data=data, key=order_id, cause=order_id))
    return found


def incoming(events: Sequence[HistoryEvent]) -> Incoming:
    """Return *events* as `AnalyticsFile.take` takes them."""
    return Incoming.of(arrow_table(events))
