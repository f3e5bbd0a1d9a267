"""Whoever waits to be decided about, and what became of him."""

from __future__ import annotations

__all__ = ["DeferredToNewerVersion", "ItemResult", "OutgoingEvent", "ReplyBuilder", "WorkItem"]

import asyncio
from collections.abc import Callable, Set
from typing import Any

from attrs import define

from app.runtime.service import Reply
from app.storage.outbox import OutboxMessage
from app.telemetry.trace import TraceContext, child
from bus.contracts.registry import ContractRegistry, Value
from bus.ids import derived_id
from bus.port import Delivery
from bus.subjects import EXPRESS
from modules.module import Decision, DecisionOutcome
from modules.routes import Rejection, Response

ReplyBuilder = Callable[[DecisionOutcome], Response | Rejection]


class DeferredToNewerVersion(Exception):
    """It is too early to act on a lower version: the higher one has not come yet."""


@define(eq=False)
class WorkItem:
    """An event that waits to be decided, and whoever waits for that: a *future*, or a *delivery* of the bus."""

    event: Any
    _id: str | None
    origin_trace: TraceContext
    """Correlation and trace. Whose step of the trace it is says `context`."""
    is_express: bool
    inbox_id: str | None
    """Under which it may have been heard before; None for what cannot have been."""
    fingerprint: str | None = None
    respond: ReplyBuilder | None = None
    future: asyncio.Future[Reply] | None = None
    delivery: Delivery | None = None
    occurred_at: str | None = None
    older_deliveries: tuple[Delivery, ...] = ()
    """Lower versions of the same event, which came while this one sat."""
    cause: OutgoingEvent | None = None
    """What was heard in the very transaction in which it was said; it has no id of its own."""
    new_key: str | None = None
    """An id that was made up for this event: nobody can have kept anything under it."""
    defers_to_newer: bool = False
    """True for a lower version of what is to come in a higher one that we understand, too: that one is the better."""

    @property
    def id(self) -> str:
        """The event's id."""
        if self._id is None:
            assert self.cause is not None
            self._id = self.cause.id
        return self._id

    @property
    def trace(self) -> TraceContext:
        """Who caused it."""
        return self.origin_trace if self.cause is None else TraceContext(self.origin_trace.correlation_id, self.cause.traceparent)


@define(eq=False)
class ItemResult:
    """What became of a seat. Without a decision and an error: it was heard before."""

    decision: Decision | None = None
    reply: Reply | None = None
    error: Exception | None = None


@define(eq=False)
class OutgoingEvent:
    """
    An *event* that was said, and fits its schema: *value* is what goes out.

    Most of what is said within a house need not travel, for all whom it concerns decide about it at once; so whatever
    serves the journey only is made when there is one: the id, the older versions, the parcels.
    """

    event: Any
    value: Value
    cause: WorkItem
    producer: str
    ordinal: int
    """Its place among all that followed from its *cause*."""
    is_express: bool
    key: str
    occurred_at: str
    due_at: str
    timer: str | None = None
    remote_subjects: Set[str] | None = None
    """Under which subjects it has to; None means under all."""
    _id: str | None = None
    _packed: list[OutboxMessage] | None = None

    @property
    def id(self) -> str:
        """The event's id. Two modules may answer one event: without the speaker in it the bus would take them for copies."""
        if self._id is None:
            self._id = derived_id(self.cause.id, f"{self.producer}.{self.ordinal}")
        return self._id

    @property
    def traceparent(self) -> str:
        """The trace of its cause, continued."""
        return child(self.cause.trace.traceparent, self.id)

    @property
    def is_delivered_locally(self) -> bool:
        """True for what need not travel at all: it never comes again, so neither outbox nor inbox need to know of it."""
        return self.remote_subjects is not None and not self.remote_subjects

    def to_messages(self, contracts: ContractRegistry) -> list[OutboxMessage]:
        """
        Return the parcels that it travels in, each with the event as it is in that version.

        Raises:
            Invalid: It breaks the schema of an older version.
        """
        if self._packed is None:
            id, trace, context = self.id, self.traceparent, self.cause.origin_trace
            lane = EXPRESS if self.is_express else ""
            self._packed = [
                OutboxMessage(
                    id if suffix is None else derived_id(id, suffix), id, subject + lane, self.key, body, self.timer,
                    context.correlation_id, self.cause.id, trace, self.occurred_at, self.due_at, versions,
                )
                for subject, body, suffix, versions in contracts.encode_versions(self.event, self.value)
                if self.remote_subjects is None or subject + lane in self.remote_subjects
            ]  # fmt: skip
        return self._packed
