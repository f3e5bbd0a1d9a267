"""A row of the outbox: an event between its commit and its publication."""

from __future__ import annotations

__all__ = ["OutboxMessage"]

from typing import NamedTuple


class OutboxMessage(NamedTuple):
    """
    A row of the outbox. `app.storage.tables` maps its members to columns.

    *id* is the message id on the bus, *event_id* the event's own id. They differ for a replayed dead letter, and for all
    but one of the messages of an event that is published in several versions. *timer* names an event that is due later,
    so that it can be cancelled. *occurred_at* and *due_at* are texts of one length, in UTC, that sort by time.
    """

    id: str
    event_id: str
    subject: str
    key: str
    body: bytes
    timer: str | None
    correlation_id: str
    causation_id: str
    traceparent: str
    occurred_at: str
    due_at: str
    versions: str | None = None
    """For an event published in several versions, one message each: all of them, as in the header."""
