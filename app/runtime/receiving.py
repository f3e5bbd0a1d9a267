"""
Receive messages from the bus: decode them for one consumer, reject what cannot be read, and settle what failed.

The module runner and the payment worker share these rules:

- A message that cannot be decoded becomes a dead letter at once. The exception is an unknown version of an event whose
  headers list a version that the consumer reads: the message is acknowledged, because the other version arrives, too. A
  known version with an unreadable body is no exception: the body of the other version may be unreadable, too.
- An older version of an event that the consumer also reads in a newer version is deferred `DEFER_MAX` times, so that the
  newer version is processed first; after that it is processed itself.
- A message that waits for a dead letter of its key becomes a dead letter itself, without an attempt; see
  `app.messaging.dead_letters.line`.
- A message whose processing failed is delivered again after a delay that doubles with each try.
- Of several processes on one database, one leads the module and receives its messages (`OutboxRelay.is_leader`). Each
  transaction and each commit has a cost of its own, so two processes with half of the messages each take far more
  processor time than one with all of them. The others are on standby, and receive what the leader leaves waiting at the
  bus: the leader requests no more than one batch ahead, and a leader that is gone requests nothing. So no process has to
  detect that the leader is overloaded, hangs or was killed; and two leaders, or none for a while, do no harm.
"""

from __future__ import annotations

__all__ = [
    "DEFER_MAX",
    "DEFER_SECONDS",
    "EventReader",
    "Received",
    "Receiver",
    "extend_ack_deadlines",
    "fetch_seconds",
    "retry_seconds",
]

import random
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from attrs import define
from loguru import logger

from app.messaging.cloudevents import event_id_and_trace, occurred_at, versions_of
from app.messaging.dead_letters import WaitsForDeadLetter
from app.telemetry.message_metrics import MessageMetrics
from app.telemetry.trace import TraceContext
from bus.contracts.registry import ContractRegistry
from bus.contracts.versions import has_readable_newer, has_readable_sibling
from bus.errors import ContractError, Rejected
from bus.port import WAITS, Clock, Delivery
from bus.subjects import EXPRESS, Event, is_express, original_subject, without_lane
from bus.tasks import seconds_to_tick

RETRY_SECONDS = 0.5
RETRY_SECONDS_MAX = 30.0

FETCH_SECONDS = 1.0
"""About how long a fetch of messages waits at most."""

DEFER_SECONDS = 1.0
DEFER_MAX = 2
"""How often, and for how long each time, an older version of an event waits for the newer one."""


@define(eq=False)
class Received:
    """A decoded message."""

    delivery: Delivery | None
    """None if the event did not come over the bus."""
    event: Any
    id: str
    """The event's own id."""
    trace: TraceContext
    subject: str
    """The original subject: a replayed message has the subject of its event."""
    occurred_at: str | None
    versions: str | None
    """The header that lists all versions of the event; None for a single version."""
    is_older: bool
    """True when the consumer also reads a newer version of this event."""

    @property
    def is_express(self) -> bool:
        """True for the express lane."""
        return is_express(self.subject)

    @property
    def may_be_deferred(self) -> bool:
        """True for an older version that has not been deferred `DEFER_MAX` times yet."""
        return self.is_older and self.delivery is not None and self.delivery.tries <= DEFER_MAX


class EventReader:
    """
    Reads the messages of one consumer: the classes that it consumes, and every older version of them by upcasting.

    `bus.contracts.versions` explains what a consumer does with a message whose event has other versions.
    """

    def __init__(self, consumer: str, contracts: ContractRegistry, classes: Iterable[type]) -> None:
        """
        Prepare the upcasts of every subject that *consumer* reads as one of *classes*.

        Raises:
            ContractError: Two of *classes* are versions of one event, so an older version could be read as either.
        """
        self.consumer = consumer
        self._contracts = contracts
        self._upcasts: dict[str, tuple[Callable[[Event], Event], ...]] = {}
        """By subject with its lane; an empty tuple for a version that is itself one of the classes."""
        for cls in classes:
            for subject, upcasts in contracts.readable_subjects(cls).items():
                if subject in self._upcasts:
                    raise ContractError(f"{consumer} would read {subject} as two classes")
                self._upcasts[subject] = self._upcasts[subject + EXPRESS] = upcasts
        # Called for each message, with the same few arguments.
        self._has_newer = lru_cache(256)(lambda subject, versions: has_readable_newer(subject, versions, self._upcasts))

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects to subscribe to, in the normal lane."""
        return tuple(subject for subject in self._upcasts if subject == without_lane(subject))

    def reads(self, subject: str) -> bool:
        """Return whether the consumer knows *subject*, with or without its lane: whether its body can be readable at all."""
        return subject in self._upcasts

    def read(self, subject: str, body: bytes) -> Event:
        """
        Return the event in *body*, a message on *subject*, as the newest class that the consumer knows.

        Raises:
            UnknownSubject: The subject, or this version of it, has no contract.
            Unreadable: The body is not JSON in UTF-8, is nested too deeply, or has a duplicate name in an object.
            Invalid: The body violates the schema; the error lists where and why.
            Rejected: The consumer does not consume this subject.
        """
        event = self._contracts.decode(subject, body)
        if subject not in self._upcasts:
            raise Rejected(f"{self.consumer} does not consume {subject}")
        for upcast in self._upcasts[subject]:
            event = upcast(event)
        return event

    def upcasts(self, subject: str) -> tuple[Callable[[Event], Event], ...]:
        """Return the steps that turn an event on the consumed *subject* into the newest class that the consumer knows."""
        return self._upcasts[subject]

    def has_newer(self, subject: str, versions: str) -> bool:
        """Return whether *versions*, the header of a message on *subject*, names a newer readable version."""
        return self._has_newer(subject, versions)

    def has_readable_sibling(self, subject: str, versions: str) -> bool:
        """Return whether *versions*, the header of a message on *subject*, names any other readable version."""
        return has_readable_sibling(subject, versions, self._upcasts)


class Receiver:
    """Decode and settle the deliveries of one consumer."""

    def __init__(self, reader: EventReader, messages: MessageMetrics, rng: random.Random) -> None:
        self._reader = reader
        self._messages = messages
        self._rng = rng

    def is_older(self, delivery: Delivery) -> bool:
        """Return True when the consumer also reads a newer version of the event that *delivery* carries."""
        versions = versions_of(delivery.message)
        return versions is not None and self._reader.has_newer(original_subject(delivery.message.subject), versions)

    async def receive(self, delivery: Delivery) -> Received | None:
        """Return the decoded message, or None when it cannot be read; it is settled then."""
        message = delivery.message
        subject, versions = original_subject(message.subject), versions_of(message)
        try:
            event = self._reader.read(subject, message.body)
        except Rejected as error:
            await self._reject(delivery, subject, versions, error)
            return None
        id, trace = event_id_and_trace(message)
        is_older = versions is not None and self._reader.has_newer(subject, versions)
        return Received(delivery, event, id, trace, subject, occurred_at(message), versions, is_older)

    async def defer(self, delivery: Delivery, detail: str = "") -> None:
        """Deliver an older version again after `DEFER_SECONDS`."""
        await delivery.nak(DEFER_SECONDS, error="superseded", detail=detail)

    async def fail(self, delivery: Delivery, error: Exception, correlation_id: str | None) -> None:
        """Deliver the message again after a delay; the bus makes it a dead letter after its last try, or if it waits for one."""
        subject = original_subject(delivery.message.subject)
        if isinstance(error, WaitsForDeadLetter):
            self._messages.count(subject, "waiting")
            logger.info(
                "message waits", consumer=self._reader.consumer, subject=subject, detail=str(error), key=delivery.message.key,
                message_id=delivery.message.id, correlation_id=correlation_id,
            )  # fmt: skip
            await delivery.term(WAITS, str(error))
            return
        detail = f"{type(error).__name__}: {error}"
        self._messages.count(subject, "failed")
        logger.warning(
            "message failed", consumer=self._reader.consumer, subject=subject, tries=delivery.tries, detail=detail,
            message_id=delivery.message.id, correlation_id=correlation_id,
        )  # fmt: skip
        await delivery.nak(retry_seconds(delivery.tries, self._rng), error="failed", detail=detail)

    async def _reject(self, delivery: Delivery, subject: str, versions: str | None, error: Rejected) -> None:
        is_unknown = not self._reader.reads(subject)
        if is_unknown and versions is not None and self._reader.has_readable_sibling(subject, versions):
            self._messages.count(subject, "ignored")
            await delivery.ack()
            return
        message = delivery.message
        logger.warning(
            "message put aside", consumer=self._reader.consumer, subject=subject, message_id=message.id,
            error=error.code, detail=str(error), correlation_id=event_id_and_trace(message)[1].correlation_id,
        )  # fmt: skip
        self._messages.count(subject, "put_aside")
        await delivery.term(error.code, str(error))


async def extend_ack_deadlines(deliveries: Iterable[Delivery], consumer: str) -> None:
    """Restart ``ack_wait`` for each of *deliveries*; a failure is logged and does not keep the others from it."""
    for delivery in deliveries:
        try:
            await delivery.in_progress()
        except Exception as error:
            logger.warning("a message that is being processed may be delivered again", consumer=consumer, detail=repr(error))


def fetch_seconds(clock: Clock) -> float:
    """Return how long a fetch waits: until the next multiple of FETCH_SECONDS, so that those of one process wake it together."""
    return seconds_to_tick(clock.monotonic(), FETCH_SECONDS)


def retry_seconds(tries: int, rng: random.Random) -> float:
    """Return the delay after try *tries*: it doubles each time, with jitter so that failures do not synchronise."""
    return min(RETRY_SECONDS * 2.0 ** (tries - 1), RETRY_SECONDS_MAX) * rng.uniform(0.5, 1.5)
