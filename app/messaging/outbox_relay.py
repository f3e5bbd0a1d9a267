"""
From the outbox to the bus.

What was committed just now comes from memory and is on its way at once. The table is for everything else: what a
killed process left behind, what was not due yet, and what there was no room for. Each event is marked as sent once the
bus is answerable for it; a mark costs no transaction of its own, it rides along with the next. Marks that are lost
with the process mean that events go out twice, and the inbox knows them.
"""

from __future__ import annotations

__all__ = ["OutboxRelay"]

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from datetime import timedelta
from functools import partial

from loguru import logger
from sqlalchemy import Connection

from app.messaging.cloudevents import to_message
from app.storage.errors import StorageUnavailable
from app.storage.module_store import ModuleStore
from app.storage.outbox import OutboxMessage
from app.storage.sql.database import RUN_LAST
from app.telemetry.metrics import Metrics
from bus.errors import BusError
from bus.port import Bus, Clock
from bus.replay_subjects import original_subject
from bus.subjects import is_express

IN_FLIGHT_MAX = 8_192
"""Messages that may be on their way at once; more wait in the table."""

EXPRESS_IN_FLIGHT_MAX = 1_024
"""How many of the express lane may be on their way beyond that: bulk work cannot block it."""

SCAN_MAX = 1_024
"""Messages that one look brings."""

MARK_SECONDS = 0.05
SCAN_SECONDS = 1.0
PURGE_SECONDS = 10.0


class OutboxRelay:
    """Carry one module's outbox to the bus."""

    def __init__(self, store: ModuleStore, bus: Bus, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._in_flight: dict[str, OutboxMessage] = {}
        self._sent: list[str] = []
        self._left_in_table = 0
        self._scan_at = 0.0
        self._purge_at = clock.monotonic() + PURGE_SECONDS
        self._has_scanned = False
        self._is_stopped = False
        self._published = metrics.messages_published
        name = store.module.name
        metrics.outbox_pending.labels(name).set_function(lambda: float(self.pending))
        metrics.outbox_oldest_seconds.labels(name).set_function(lambda: self._oldest_seconds)
        self._oldest_seconds = 0.0

    @property
    def pending(self) -> int:
        """How many events are due and not taken by the bus."""
        return len(self._in_flight) + self._left_in_table

    def publish(self, outbox_messages: Sequence[OutboxMessage]) -> None:
        """Send *parcels*, which are committed and due. What there is no room for is found in the table later."""
        for outbox_message in outbox_messages:
            self._send(outbox_message)

    def count_delivered(self, subjects: Iterable[str]) -> None:
        """Count what was said on *subjects* and has arrived without us."""
        for subject, count in Counter(subjects).items():
            self._published.labels(original_subject(subject)).inc(count)

    async def step(self) -> None:
        """Mark what was sent, and look into the table when it is time to."""
        now = self._clock.monotonic()
        sent, self._sent = self._sent, []
        is_to_look = now >= self._scan_at
        try:
            if is_to_look:
                self._scan_at = now + SCAN_SECONDS
                self._publish_found(*await self._store.database.write(partial(self._scan, sent, frozenset(self._in_flight)), RUN_LAST))
            elif sent:
                self._store.database.defer(partial(self._mark, sent))
        except StorageUnavailable:
            self._sent = sent + self._sent  # a copy too many is harmless; a second publish of each would be a waste
        if now >= self._purge_at:
            await self._purge(now)

    async def run(self) -> None:
        """Carry until cancelled or stopped."""
        while not self._is_stopped:
            await self.step()
            await self._clock.sleep(MARK_SECONDS)

    async def stop(self) -> None:
        """Send nothing more; write down what the bus has taken, what rides already, too. Idempotent."""
        self._is_stopped = True
        sent, self._sent = self._sent, []
        if sent:
            self._store.database.defer(partial(self._mark, sent))
        await self._store.database.flush()

    def _send(self, outbox_message: OutboxMessage) -> None:
        if outbox_message.id in self._in_flight:
            return
        room = IN_FLIGHT_MAX + (EXPRESS_IN_FLIGHT_MAX if is_express(outbox_message.subject) else 0)
        if self._is_stopped or len(self._in_flight) >= room or not self._bus.is_connected:
            self._left_in_table += 1
            return
        self._in_flight[outbox_message.id] = outbox_message
        self._bus.publish(to_message(outbox_message)).add_done_callback(partial(self._on_published, outbox_message))

    def _on_published(self, outbox_message: OutboxMessage, published: asyncio.Future[None]) -> None:
        del self._in_flight[outbox_message.id]
        if published.cancelled():
            self._left_in_table += 1
            return
        error = published.exception()
        if error is None:
            self._published.labels(original_subject(outbox_message.subject)).inc()
            self._sent.append(outbox_message.id)
            return
        self._left_in_table += 1  # still in the table, to be found when we look again
        if not isinstance(error, BusError):
            logger.error("publishing failed", subject=outbox_message.subject, event_id=outbox_message.event_id, error=repr(error))

    def _mark(self, sent: list[str], connection: Connection) -> None:
        self._store.mark_sent(connection, sent, self._clock.now())

    def _scan(self, sent: list[str], flying: Set[str], connection: Connection) -> tuple[list[OutboxMessage], int, float]:
        """
        Mark *sent*, then find what is due and not *flying*, how much is due in all, and how old it is.

        In one transaction, and behind the marks that still ride: so whatever is found unsent is either on its way, or
        nobody has taken care of it.
        """
        if sent:
            self._mark(sent, connection)
        now = self._clock.now()
        count = self._store.count_due(connection, now)
        # While the bus is away somebody else may look after what lies here; what is ours to send waits for it.
        leads = self._store.acquire_leadership(connection, self._bus.is_connected)
        grace = self._store.handover_delay(timedelta(seconds=SCAN_SECONDS if self._has_scanned else 0))
        is_to_send = count > 0 and leads and self._bus.is_connected
        outbox_messages = self._store.fetch_due(connection, now, SCAN_MAX, grace, flying) if is_to_send else []
        return outbox_messages, count, self._store.oldest_due_seconds(connection, now)

    def _publish_found(self, outbox_messages: Sequence[OutboxMessage], count: int, oldest_seconds: float) -> None:
        self._has_scanned = True
        self._oldest_seconds = oldest_seconds
        done = set(self._sent)
        forgotten = [outbox_message for outbox_message in outbox_messages if outbox_message.id not in done and outbox_message.id not in self._in_flight]
        for outbox_message in forgotten:
            self._send(outbox_message)
        # What was committed a moment ago and is being handed to us now counts as left, until we look again.
        self._left_in_table = max(0, count - len(self._in_flight) - len(done))
        if len(forgotten) >= SCAN_MAX and self._bus.is_connected and len(self._in_flight) < IN_FLIGHT_MAX:
            self._scan_at = self._clock.monotonic()

    async def _purge(self, now: float) -> None:
        """Forget a few old rows; if there were any, come back for more soon."""
        try:
            gone = await self._store.database.write(lambda connection: self._store.purge(connection, self._clock.now()))
        except StorageUnavailable:
            gone = 0
        self._purge_at = now + (MARK_SECONDS if gone else PURGE_SECONDS)
