"""A row of the outbox: an event between the commit and the bus."""

from __future__ import annotations

__all__ = ["OutboxMessage"]

from typing import NamedTuple


class OutboxMessage(NamedTuple):
    """
    A row of the outbox: an event on its way out. Its members are the table's columns, in their order.

    *id* is the broker's, *event_id* the event's own; they differ when a dead letter is replayed, and for all but one of
    the versions in which an event is said. *occurred_at* and *due_at* are texts of one length: they compare as the moments do.
    """

    id: str
    event_id: str
    subject: str
    key: str
    body: bytes
    name: str | None
    correlation_id: str
    causation_id: str
    traceparent: str
    occurred_at: str
    due_at: str
    versions: str | None = None
    """Where the event is said in several: all of them, as the header has it. Each is a parcel of its own."""


