"""Read what a module has scheduled: the events of its outbox that are due later."""

from __future__ import annotations

__all__ = ["COUNTED_MAX", "ScheduledEvent", "Timers", "read_timers"]

from collections.abc import Sequence
from datetime import UTC, datetime

from attrs import frozen
from sqlalchemy import Connection, func, select

from app.storage.tables import shared_message_tables

COUNTED_MAX = 10_000
"""Counting stops at this many timers."""

_SCHEDULED = datetime(1971, 1, 1, tzinfo=UTC)
"""Between `app.storage.tables.DUE_NOW`, which events without a timer have, and the times of any timer."""


@frozen
class ScheduledEvent:
    """An event that its module publishes at *due_at*, unless the module cancels it before."""

    subject: str
    key: str
    due_at: datetime


@frozen
class Timers:
    """The timers of a module: how many, `COUNTED_MAX` at most, and those that are due first."""

    count: int
    first: Sequence[ScheduledEvent]


def read_timers(module: str, limit: int, connection: Connection) -> Timers:
    """Return the timers of *module* with the *limit* first of them; the index of the outbox gives their order."""
    c = shared_message_tables(module)[1].c
    waiting = select(c.due_at).where(c.sent_at.is_(None), c.due_at > _SCHEDULED)
    counted = connection.execute(select(func.count()).select_from(waiting.limit(COUNTED_MAX).subquery())).scalar_one()
    rows = connection.execute(waiting.with_only_columns(c.subject, c.key, c.due_at).order_by(c.due_at).limit(limit))
    return Timers(counted, [ScheduledEvent(subject, key, due_at.astimezone(UTC)) for subject, key, due_at in rows])
