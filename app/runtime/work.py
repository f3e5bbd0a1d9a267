"""
What a transaction works on: an item that waits for a decision, its result, the events that follow, and the unit of work.

A work item is caused by an outgoing event when it is delivered locally, and every outgoing event is caused by a work
item; that is why both are in one file. The unit of work collects what one module has loaded, changed and emitted
within a transaction that is not written yet.
"""

from __future__ import annotations

__all__ = [
    "CommitListener",
    "DeferredToNewerVersion",
    "ItemResult",
    "OutgoingEvent",
    "ReplyBuilder",
    "TakeEvent",
    "UnitOfWork",
    "WorkItem",
    "Worker",
]

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from itertools import count
from typing import Any, Protocol

from attrs import define, field

from app.runtime.service import Reply
from app.storage.archive.history_content import Entry
from app.storage.audit import Audit
from app.storage.tables import DUE_NOW, AuditEntry, OutboxMessage
from app.telemetry.trace import TraceContext, child
from bus.contracts.contract import Value
from bus.contracts.registry import ContractRegistry
from bus.ids import derived_id
from bus.port import Delivery, Subscription
from bus.subjects import EXPRESS
from modules.module import Decision, DecisionOutcome, Key
from modules.routes import Rejection, Response

ReplyBuilder = Callable[[DecisionOutcome], Response | Rejection]
"""Builds the reply to a submitted event; pure, called inside the transaction."""


class DeferredToNewerVersion(Exception):
    """The event also exists in a newer version that the module reads, and that version has not arrived yet."""


@define(eq=False)
class WorkItem:
    """
    An event that waits for a decision.

    It has a *future* when a caller submitted it, a *delivery* when the bus delivered it, and a *cause* when another
    module emitted it within the same transaction (local delivery).
    """

    event: Any
    _id: str | None
    origin_trace: TraceContext
    """The trace context that came with the event; `traceparent` is the trace to continue."""
    is_express: bool
    inbox_id: str | None
    """The id under which the inbox may know the event already; None when that is impossible."""
    fingerprint: str | None = None
    respond: ReplyBuilder | None = None
    future: asyncio.Future[Reply] | None = None
    delivery: Delivery | None = None
    subject: str = ""
    """The subject on which the event arrived; empty for a submitted event."""
    occurred_at: str | None = None
    older_deliveries: tuple[Delivery, ...] = ()
    """Deliveries of older versions of this event, settled together with it."""
    cause: OutgoingEvent | None = None
    """The outgoing event that is delivered locally by this item; the item has its id."""
    new_key: str | None = None
    """A key that was generated for this event: no state can exist under it."""
    audit: Audit | None = None
    """Who requests the change, if the audit records it."""
    defers_to_newer: bool = False
    """True for an older version of an event that the module reads in a newer version, too: the newer one is preferred."""

    @property
    def id(self) -> str:
        """The event's id."""
        if self._id is None:
            assert self.cause is not None
            self._id = self.cause.id
        return self._id

    @property
    def traceparent(self) -> str:
        """The trace that the events which follow from this item continue."""
        return self.origin_trace.traceparent if self.cause is None else self.cause.traceparent


@define(eq=False)
class ItemResult:
    """The result of processing one item. Without a decision and an error, the inbox knew the event already."""

    decision: Decision | None = None
    reply: Reply | None = None
    error: Exception | None = None
    emitted: Sequence[OutgoingEvent] = ()
    """The events and timers that follow."""


@define(eq=False)
class OutgoingEvent:
    """
    An event that a decision emitted, validated against its schema; *value* is its JSON value.

    Most events are delivered locally and never leave the process, so their id, trace, older versions and outbox rows
    are created on demand only.
    """

    event: Any
    value: Value
    cause: WorkItem
    producer: str
    ordinal: int
    """Its position among all events that follow from its *cause*."""
    is_express: bool
    key: str
    occurred_at: str
    due_at: str
    record: list[Any]
    """Its part of the history; see `app.storage.archive.history_content`."""
    timer: str | None = None
    subjects: Set[str] = frozenset()
    """All subjects under which it is published, one for each version; known once it is delivered locally."""
    remote_subjects: Set[str] | None = None
    """The subjects under which the bus has to carry it; None means all of its versions."""
    is_delivered_locally: bool = False
    """True when every subscriber has decided about it within this transaction: it needs no outbox and no inbox row."""
    _id: str | None = None
    _messages: list[OutboxMessage] | None = None

    @property
    def id(self) -> str:
        """The event's id; it depends on the producer, because two modules may emit events for one cause."""
        if self._id is None:
            self._id = derived_id(self.cause.id, f"{self.producer}.{self.ordinal}")
        return self._id

    @property
    def traceparent(self) -> str:
        """The trace of its cause, continued."""
        return child(self.cause.traceparent, self.id)

    @property
    def messages(self) -> list[OutboxMessage]:
        """Its outbox rows, which `to_messages` has made."""
        assert self._messages is not None
        return self._messages

    def to_messages(self, contracts: ContractRegistry) -> list[OutboxMessage]:
        """
        Return its outbox rows, one for each version that the bus has to carry.

        Raises:
            Invalid: The event breaks the schema of an older version.
        """
        if self._messages is None:
            id, trace, correlation_id = self.id, self.traceparent, self.cause.origin_trace.correlation_id
            lane = EXPRESS if self.is_express else ""
            self._messages = [
                OutboxMessage(
                    id if suffix is None else derived_id(id, suffix), id, subject + lane, self.key, body, self.timer,
                    correlation_id, self.cause.id, trace, self.occurred_at, self.due_at, versions,
                )
                for subject, body, suffix, versions in contracts.encode_versions(self.event, self.value)
                if self.remote_subjects is None or subject + lane in self.remote_subjects
            ]  # fmt: skip
        return self._messages


@define(eq=False)
class UnitOfWork:
    """One module's part of a transaction."""

    generated_keys: Set[str] = frozenset()
    """Keys that were generated for this transaction: no select is needed to know that no state exists under them."""
    positions: Iterator[int] = field(factory=count)
    """Gives each event that is due now its position among those of the transaction; all of its units share it."""
    identity_map: dict[type, dict[str, Any]] = field(factory=lambda: defaultdict(dict))
    """Every state that was loaded, as it is now, by class and key; None where no state exists."""
    changed: dict[type, dict[str, Any]] = field(factory=lambda: defaultdict(dict))
    """The states that have changed."""
    new_keys: dict[type, set[str]] = field(factory=lambda: defaultdict(set))
    """Keys under which the database has no row."""
    inbox_entries: list[tuple[WorkItem, str | None]] = field(factory=list)
    """The items that were decided, each with the reply that is stored for its idempotency key."""
    audit: list[AuditEntry] = field(factory=list)
    """What a person or a key has changed."""
    cancelled_timers: list[str] = field(factory=list)
    outgoing: list[OutgoingEvent] = field(factory=list)
    unpublished: list[OutgoingEvent] = field(factory=list)
    """Events whose timer was cancelled within this transaction, before they left it."""
    history: list[Entry] = field(factory=list)
    """An entry of the history for every item that was decided; `app.storage.archive.history_content` describes it."""
    line_decided: list[tuple[str, str]] = field(factory=list)
    """Key and id of each decided event whose turn it was in the line of a dead letter."""
    timer_names: set[str] = field(factory=set)
    """Names of the timers that were set within this transaction."""

    def missing_keys(self, wanted: Iterable[Iterable[Key]]) -> dict[type, set[str]]:
        """Return which of the *wanted* keys have to be loaded from the database, by class."""
        identity_map, generated = self.identity_map, self.generated_keys
        missing: dict[type, set[str]] = defaultdict(set)
        for keys in wanted:
            for cls, key in keys:
                if key not in identity_map[cls]:
                    if key in generated:
                        identity_map[cls][key] = None
                        self.new_keys[cls].add(key)
                    else:
                        missing[cls].add(key)
        return missing

    def load(
        self, keys: Mapping[type, Set[str]], found: Mapping[type, Mapping[str, Any]], recent: tuple[str, str]
    ) -> dict[type, list[str]]:
        """
        Put the states *found* under *keys* into the identity map; the other keys have no state in the tables.

        Return those of the others whose state may be archived: all that are not between the bounds of *recent* ones.
        """
        (first, end), old = recent, {}
        for cls, wanted in keys.items():
            existing = found[cls]
            states = self.identity_map[cls]
            states.update(existing)
            missing = wanted - existing.keys()
            if missing:
                states.update(dict.fromkeys(missing))
                self.new_keys[cls] |= missing
                if archived := [key for key in missing if not first <= key < end]:
                    old[cls] = archived
        return old

    def restore(self, archived: Mapping[type, Mapping[str, Any]]) -> None:
        """Put *archived* states into the identity map; their keys stay new, as the tables have no rows under them."""
        for cls, states in archived.items():
            self.identity_map[cls].update(states)

    def cancel_timers(self, names: Sequence[str]) -> None:
        """Cancel the timers *names*; one that was set within this transaction is never written."""
        self.cancelled_timers += names
        if not self.timer_names.isdisjoint(names):
            self.unpublished += [event for event in self.outgoing if event.timer in names]
            self.outgoing = [event for event in self.outgoing if event.timer not in names]

    def record_unpublished(self) -> None:
        """Record those of the unpublished events that were due now as timers: the history shows no event that no module got."""
        for event in self.unpublished:
            if event.due_at is DUE_NOW and not event.is_delivered_locally:
                event.record[:] = [None, *event.record[1:], event.due_at]

    def without_cancelled(self, events: list[OutgoingEvent]) -> list[OutgoingEvent]:
        """Return *events* without those whose timer was cancelled within this transaction."""
        if self.timer_names.isdisjoint(self.cancelled_timers):
            return events
        remaining = set(self.outgoing)
        return [event for event in events if event in remaining]


CommitListener = Callable[[Any, Decision, TraceContext], None]
"""Called on the event loop after the commit, for each decided event: ``listener(event, decision, trace)``. Must not raise."""

TakeEvent = Callable[[OutgoingEvent], asyncio.Future[bool] | None]
"""
Takes a committed event in place of the bus; returns a future that is true once the event is processed.

It returns None if the bus has to carry the event. If the future is false or fails, the outbox relay publishes the event.
"""


class Worker(Protocol):
    """A consumer beside a module's own, which calls something outside and submits the answer to the module."""

    async def consume(self, subscription: Subscription, is_express: bool = False) -> None:
        """Handle what *subscription*, one lane, delivers, until cancelled."""

    def take(self, event: OutgoingEvent) -> asyncio.Future[bool] | None:
        """Handle a committed event that did not come over the bus; see `TakeEvent`."""

    async def drain(self, seconds: float) -> None:
        """Let the calls in flight end, for up to *seconds*; cancel the rest, which the bus delivers again."""

    async def close(self) -> None:
        """Close the connections to the outside. Idempotent."""
