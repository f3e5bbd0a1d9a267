"""
Publish the outbox of one module to the bus.

Rows that were committed just now come from memory and are published at once. A scan of the table finds the others: rows
that a killed process left behind, rows that were not due yet, and rows beyond the limit of those in flight. The relay
marks a row as sent once the bus has durably accepted its message. The marks are piggy-backed on the next transaction.
If the process ends before, the rows are published again, and the consumers' inboxes recognise the duplicates.
"""

from __future__ import annotations

__all__ = ["OutboxRelay"]

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence, Set
from datetime import datetime, timedelta
from functools import partial

from attrs import frozen
from loguru import logger
from sqlalchemy import Connection

from app.messaging.cloudevents import to_message
from app.storage.errors import StorageUnavailable
from app.storage.heartbeat import BEAT_SECONDS
from app.storage.module_store import ModuleStore
from app.storage.sql.database import RUN_LAST
from app.storage.tables import OutboxMessage
from app.telemetry.metrics import Metrics
from bus.errors import BusError, PublishRefused
from bus.port import Bus, Clock, DeadLetter, DeadLetters
from bus.subjects import OUTBOX, is_express, original_subject
from bus.tasks import seconds_to_tick

IN_FLIGHT_MAX = 8_192
"""Messages that may be in flight at once; the others wait in the table."""

EXPRESS_IN_FLIGHT_MAX = 1_024
"""Additional messages of the express lane that may be in flight: bulk work cannot block it."""

SCAN_MAX = 1_024
"""Rows that one scan returns."""

REFUSED_MAX = 64
"""Rows that the bus refuses and that one step makes dead letters of."""

ERRORS_MAX = 16
"""Unforeseen errors that are remembered, so that each is logged once."""

MARK_SECONDS = 0.05
SCAN_SECONDS = 1.0
PURGE_SECONDS = 10.0

IDLE_SECONDS = 0.25
"""
The pause between two steps while nothing is in flight; it ends at a multiple of itself.

An idle process makes few steps, and its relays make them at the same moments, so that their scans share a transaction.
"""


COUNT_SHARE_MAX = 0.02
"""The share of its time that the relay may spend on counting a long backlog; between two counts it keeps the number itself."""

COUNT_FREE_SECONDS = 0.005
"""A count that is not longer than this is made at each scan."""

COUNT_SECONDS_MAX = 10.0
"""The longest interval between two counts: other processes change the table, too."""


@frozen
class _Scanned:
    """What one scan of the table has found; *count* is None if the rows were not counted, which took *count_seconds*."""

    rows: Sequence[OutboxMessage]
    is_leader: bool
    count: int | None
    rows_per_event: float
    count_seconds: float
    oldest_seconds: float


class OutboxRelay:
    """Publish one module's outbox."""

    def __init__(self, store: ModuleStore, bus: Bus, dead_letters: DeadLetters, clock: Clock, metrics: Metrics) -> None:
        """Publish the outbox in *store* to *bus*; a row that the bus never accepts goes to *dead_letters*."""
        self._store = store
        self._bus = bus
        self._dead_letters = dead_letters
        self._refused: deque[tuple[OutboxMessage, str, str]] = deque()
        self._logged_errors: set[str] = set()
        self._clock = clock
        self._tracer = metrics.tracer
        self._in_flight: dict[str, OutboxMessage] = {}
        self._handed_over = 0
        """How many of those in flight a worker of this process has in hand."""
        self._sent: list[str] = []
        self._left_in_table = 0
        self._rows_per_event = 1.0
        self.pending_events = 0
        """How many events the pending rows are, at the time of the last step: one that is published in two versions has two rows."""
        self._count_at = 0.0
        self._scan_at = self._beat_at = 0.0
        self._purge_at = clock.monotonic() + PURGE_SECONDS
        self._has_scanned = False
        self.is_leader = False
        """True in the process that scans the outbox and receives the messages of the module; see `app.runtime.receiving`."""
        self._is_stopped = False
        self._published = metrics.messages_published
        name = store.module.name
        metrics.outbox_pending.labels(name).set_function(lambda: float(self.pending))
        metrics.outbox_oldest_seconds.labels(name).set_function(lambda: self.oldest_seconds)
        metrics.module_leader.labels(name).set_function(lambda: float(self.is_leader))
        self._oldest_seconds = 0.0
        self._progress_at = clock.monotonic()

    def waiting_seconds(self) -> float:
        """
        Return for how long a row has waited for the bus, or none has been accepted although some wait; 0 if none waits.

        A row that was handed over waits for something else, such as a payment provider.
        """
        if self.pending <= self._handed_over:
            return 0.0
        return max(self._oldest_seconds, self._clock.monotonic() - self._progress_at)

    @property
    def oldest_seconds(self) -> float:
        """For how long the oldest of them has been due, at the last scan; 0 if there is none."""
        return self._oldest_seconds

    @property
    def pending(self) -> int:
        """How many rows are due and not accepted by the bus yet; between two counts of the table an estimate."""
        return len(self._in_flight) + self._left_in_table

    def publish(self, rows: Sequence[OutboxMessage]) -> None:
        """Publish *rows*, which are committed and due. A later scan finds those beyond the limit of rows in flight."""
        for row in rows:
            self._send(row)
        if rows and not self._bus.is_connected:
            self._rows_per_event = len(rows) / len({row.event_id for row in rows})  # until the next count finds out
            self._count_events()

    def hand_over(self, row: OutboxMessage, take: Callable[[], asyncio.Future[bool] | None]) -> None:
        """
        Let *take* process the event of *row*, which is committed and due, in place of the bus.

        The row counts as sent once the future is true. It is published if *take* returns None, or the future is false or
        fails.
        """
        if row.id in self._in_flight:  # a scan has found it
            return
        processed = None if self._is_stopped else take()
        if processed is None:
            self._send(row)
        else:
            self._in_flight[row.id] = row
            self._handed_over += 1
            processed.add_done_callback(partial(self._on_processed, row))
            if self._tracer is not None:
                self._tracer.publish(row, processed)

    def count_delivered(self, subjects: Iterable[str]) -> None:
        """Count events that were delivered locally, one for each of *subjects*."""
        for subject, count in Counter(subjects).items():
            self._published.labels(original_subject(subject)).inc(count)

    async def step(self) -> None:
        """Mark the rows that were sent; scan the table and purge old rows when it is time to."""
        now = self._clock.monotonic()
        self._count_events()
        sent, self._sent = self._sent, []
        if sent or not self.pending:
            self._progress_at = now
        is_scan_due = now >= self._scan_at
        try:
            if is_scan_due:
                self._scan_at = now - now % IDLE_SECONDS + SCAN_SECONDS
                scan = partial(self._scan, sent, frozenset(self._in_flight))
                self._publish_found(await self._store.database.write(scan, RUN_LAST))
            elif sent:
                self._store.database.defer(partial(self._mark, sent))
        except StorageUnavailable:
            self._sent = sent + self._sent  # marked in a later step; publishing again would be harmless but wasteful
        if self._refused:
            await self._dead_letter()
        if now >= self._purge_at:
            await self._purge(now)

    async def run(self) -> None:
        """Publish until cancelled or stopped."""
        while not self._is_stopped:
            await self.step()
            await self._clock.sleep(self._pause_seconds())

    def _pause_seconds(self) -> float:
        """Return the time until the next step: short while something is to be marked, scanned or purged soon."""
        now = self._clock.monotonic()
        if self._sent or self._in_flight or min(self._scan_at, self._purge_at) <= now + MARK_SECONDS:
            return MARK_SECONDS
        return seconds_to_tick(now, IDLE_SECONDS)

    async def stop(self) -> None:
        """Publish nothing more; write all marks, including those that are piggy-backed. Idempotent."""
        self._is_stopped = True
        sent, self._sent = self._sent, []
        if sent:
            self._store.database.defer(partial(self._mark, sent))
        await self._store.database.flush()

    def _count_events(self) -> None:
        self.pending_events = round(self.pending / self._rows_per_event)

    def _send(self, row: OutboxMessage) -> None:
        if row.id in self._in_flight:
            return
        limit = IN_FLIGHT_MAX + (EXPRESS_IN_FLIGHT_MAX if is_express(row.subject) else 0)
        if self._is_stopped or len(self._in_flight) >= limit or not self._bus.is_connected:
            self._left_in_table += 1
            return
        self._in_flight[row.id] = row
        published = self._bus.publish(to_message(row))
        published.add_done_callback(partial(self._on_published, row))
        if self._tracer is not None:
            self._tracer.publish(row, published)

    def _on_processed(self, row: OutboxMessage, processed: asyncio.Future[bool]) -> None:
        del self._in_flight[row.id]
        self._handed_over -= 1
        if not processed.cancelled() and processed.exception() is None and processed.result():
            self._on_sent(row)
        else:
            self._send(row)

    def _on_sent(self, row: OutboxMessage) -> None:
        self._published.labels(original_subject(row.subject)).inc()
        self._sent.append(row.id)

    def _on_published(self, row: OutboxMessage, published: asyncio.Future[None]) -> None:
        error = None if published.cancelled() else published.exception()
        if isinstance(error, PublishRefused):
            self._refused.append((row, error.code, str(error)))  # it stays in flight, so that no scan publishes it again
            return
        del self._in_flight[row.id]
        if published.cancelled():
            self._left_in_table += 1
            return
        if error is None:
            self._on_sent(row)
            if self._logged_errors:
                self._logged_errors.clear()
            return
        self._left_in_table += 1  # a later scan finds the row
        if not isinstance(error, BusError):
            self._log_once("publishing failed", row, error)

    def _log_once(self, what: str, row: OutboxMessage, error: BaseException) -> None:
        """Log *error*; each one once until a row is published again."""
        text = f"{what}: {error!r}"
        if text not in self._logged_errors and len(self._logged_errors) < ERRORS_MAX:
            self._logged_errors.add(text)
            logger.error(what, subject=row.subject, event_id=row.event_id, error=repr(error))

    async def _dead_letter(self) -> None:
        """Make dead letters of some of the rows that the bus never accepts, and remove the rows."""
        rows = [self._refused.popleft() for _ in range(min(len(self._refused), REFUSED_MAX))]
        ends = await asyncio.gather(*(self._add_dead_letter(*row) for row in rows), return_exceptions=True)
        stored = [row.id for (row, *_), end in zip(rows, ends, strict=True) if end is None]
        for (row, *_), end in zip(rows, ends, strict=True):
            if end is not None:
                self._log_once("the dead letter of an event that the bus refuses is not stored", row, end)
        try:
            await self._store.database.write(lambda connection: self._store.remove(connection, stored))
        except StorageUnavailable:
            stored = []
        for each in rows:
            if each[0].id in stored:
                self._in_flight.pop(each[0].id, None)
            else:
                self._refused.append(each)

    async def _add_dead_letter(self, row: OutboxMessage, error: str, detail: str) -> None:
        consumer, now = f"{self._store.module.name}{OUTBOX}", self._clock.now()
        occurred_at = datetime.fromisoformat(row.occurred_at)
        await self._dead_letters.add(DeadLetter.of(to_message(row), consumer, error, detail, 1, occurred_at, now))

    def _mark(self, sent: list[str], connection: Connection) -> None:
        self._store.mark_sent(connection, sent, self._clock.now())

    def _scan(self, sent: list[str], in_flight: Set[str], connection: Connection) -> _Scanned:
        """
        Mark *sent*; return the due rows that are not *in_flight*, and what is known about all due rows.

        The scan runs in one transaction, after the piggy-backed marks: a row that it finds unsent is either in flight or
        abandoned.
        """
        if sent:
            self._mark(sent, connection)
        now = self._clock.now()
        count, rows_per_event, seconds = None, 0.0, 0.0
        if self._clock.monotonic() >= self._count_at:
            began_at = time.perf_counter()
            count, rows_per_event = self._store.count_due(connection, now), self._store.rows_per_event(connection, now)
            seconds = time.perf_counter() - began_at
        # While this process has no connection to the bus, another replica may lead; rows of this process wait in memory.
        is_leader = self._store.acquire_leadership(connection, self._bus.is_connected)
        if self._clock.monotonic() >= self._beat_at:
            self._beat_at = self._clock.monotonic() + BEAT_SECONDS
            self._store.heartbeat.beat(connection, now)
        handover_delay = self._store.handover_delay(timedelta(seconds=SCAN_SECONDS if self._has_scanned else 0))
        is_to_send = count != 0 and is_leader and self._bus.is_connected
        rows = self._store.fetch_due(connection, now, SCAN_MAX, handover_delay, in_flight) if is_to_send else []
        rows = self._store.end_timers(connection, rows, now)
        return _Scanned(rows, is_leader, count, rows_per_event, seconds, self._store.oldest_due_seconds(connection, now))

    def _publish_found(self, scanned: _Scanned) -> None:
        rows, count, self.is_leader = scanned.rows, scanned.count, scanned.is_leader
        self._has_scanned = True
        self._oldest_seconds = scanned.oldest_seconds
        done = set(self._sent)
        forgotten = [row for row in rows if row.id not in done and row.id not in self._in_flight]
        for row in forgotten:
            self._send(row)
        if count is None:
            self._left_in_table = max(0, self._left_in_table - len(forgotten))  # `_send` has counted those that stay
        else:
            # A row that was committed a moment ago and is not passed to `publish` yet counts as left until the next count.
            self._left_in_table = max(0, count - len(self._in_flight) - len(done))
            self._rows_per_event = scanned.rows_per_event or self._rows_per_event
            self._count_events()
            self._count_at = self._clock.monotonic() + min(
                COUNT_SECONDS_MAX, max(0.0, scanned.count_seconds - COUNT_FREE_SECONDS) / COUNT_SHARE_MAX
            )
        if len(forgotten) >= SCAN_MAX and self._bus.is_connected and len(self._in_flight) < IN_FLIGHT_MAX:
            self._scan_at = self._clock.monotonic()

    async def _purge(self, now: float) -> None:
        """Delete some old rows; soon again if there were any."""
        try:
            deleted = await self._store.database.write(lambda connection: self._store.purge(connection, self._clock.now()))
        except StorageUnavailable:
            deleted = 0
        self._purge_at = now + (MARK_SECONDS if deleted else PURGE_SECONDS)
