"""
The interface of the bus: protocols whose docstrings promise behaviour.

The bus delivers bytes on a subject to *consumer groups*. Every group that subscribes to a subject receives every
message on it at least once, in no guaranteed order; the members of a group share its messages.
``tests/bus/contract.py`` states each promise as a test, and every adapter passes the same suite.
"""

from __future__ import annotations

__all__ = [
    "ACK_WAIT_SECONDS",
    "DEDUP_SECONDS",
    "MAX_TRIES",
    "NO_ANSWER",
    "WAITS",
    "Bus",
    "Clock",
    "DeadLetter",
    "DeadLetters",
    "Delivery",
    "Message",
    "Subscription",
]

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from attrs import define, field, frozen

from bus.ids import derived_id

ACK_WAIT_SECONDS = 30.0
"""Time for which a delivery may stay unsettled before the message is redelivered."""

MAX_TRIES = 5
"""Number of delivery attempts after which a message becomes a dead letter."""

DEDUP_SECONDS = 120.0
"""Time for which the bus recognises the id of a message that it has accepted."""

NO_ANSWER = "no_answer"
"""Error code of a dead letter whose last delivery was not settled within ``ack_wait``."""

WAITS = "waits"
"""Error code of a message that was not attempted: an earlier one of its key is a dead letter of its consumer."""


@define  # not frozen, which would take three times as long to make; messages are never changed nevertheless
class Message:
    """
    A message: a body with the metadata that the bus needs to transport it.

    *id* identifies the message: the bus treats two messages with one id as one, for as long as it remembers the id
    (`DEDUP_SECONDS`). The event has its own id in the headers (``ce-id``), so a replayed dead letter is a new message
    with an old event. *key* identifies the subject matter (an order, a product); the bus ignores it, and a
    store of dead letters may keep the order of the messages with one key.
    """

    subject: str
    id: str
    body: bytes
    key: str = ""
    headers: Mapping[str, str] = field(factory=dict)


@frozen
class DeadLetter:
    """
    A message that a consumer group cannot process, and the reason.

    *id* is derived from the consumer and the message's id, so storing it twice has the effect of storing it once.
    *error* is a stable code, *detail* a sentence for the operator. Of the messages that one group receives, *first_seen*
    has the order in which it has received them, or in which they were published.
    """

    id: str
    consumer: str
    message: Message
    error: str
    detail: str
    attempts: int
    first_seen: datetime
    last_seen: datetime

    @classmethod
    def of(
        cls,
        message: Message,
        consumer: str,
        error: str,
        detail: str,
        attempts: int,
        first_seen: datetime | None,
        now: datetime,
    ) -> DeadLetter:
        """
        Return the dead letter of *consumer* for *message*, last seen *now*.

        *first_seen* is the time of publication or of the first delivery; None, if it is unknown, means *now*.
        """
        return cls(
            id=derived_id(message.id, consumer),
            consumer=consumer,
            message=message,
            error=error,
            detail=detail,
            attempts=attempts,
            first_seen=first_seen or now,
            last_seen=now,
        )


class DeadLetters(Protocol):
    """The store of dead letters."""

    async def add(self, dead_letter: DeadLetter) -> None:
        """
        Store *dead_letter* durably; a dead letter with a known id is not stored again.

        A message with the error `WAITS` waits for another dead letter. If that is gone meanwhile, the message may be sent to
        its consumer again at once, and is not stored.

        Raises:
            Exception: It is not stored. The bus keeps the message and tries again later.
        """


class Clock(Protocol):
    """The source of time; tests pass a virtual clock."""

    def now(self) -> datetime:
        """Return the wall-clock time, timezone-aware, in UTC. It does not jump while the process runs."""

    def monotonic(self) -> float:
        """Return the seconds since a fixed moment; the value never decreases."""

    async def sleep(self, seconds: float) -> None:
        """Return once *seconds* have passed on this clock; 0 only yields to the event loop."""


class Delivery(Protocol):
    """
    A delivered message, until it is settled.

    Exactly one of `ack`, `nak` and `term` settles it; without one it is redelivered after ``ack_wait``. A later `ack`
    counts if the message has not been settled by another delivery, and has no effect otherwise. A later `nak` or `term`
    may have no effect, because the message is redelivered in any case. None of these methods raises.
    """

    @property
    def message(self) -> Message:
        """The message with subject, id, key, headers and body as they were published."""

    @property
    def tries(self) -> int:
        """Number of deliveries of this message to the group, including this one: 1 to `MAX_TRIES`."""

    async def ack(self) -> None:
        """Settle it as processed; it is never delivered to this group again."""

    async def nak(self, delay_seconds: float, *, error: str = "failed", detail: str = "") -> None:
        """
        Redeliver it after *delay_seconds*; this delivery counts as one attempt.

        After the last attempt the message becomes a dead letter with *error* and *detail* instead.
        """

    async def term(self, error: str, detail: str = "") -> None:
        """Make it a dead letter with *error* and *detail* now, however many attempts are left."""

    async def in_progress(self) -> None:
        """Restart ``ack_wait``, because processing continues. Does not count as an attempt."""


class Subscription(Protocol):
    """One member of a consumer group. Without members the group keeps its messages."""

    @property
    def consumer(self) -> str:
        """The group's name."""

    @property
    def is_paused(self) -> bool:
        """True between pause and resume."""

    async def fetch(self, limit: int, wait_seconds: float, is_standby: bool = False) -> list[Delivery]:
        """
        Return up to *limit* deliveries; wait up to *wait_seconds* for the first one only.

        With *is_standby* the member leaves the messages to the group's other members, and receives those that no fetch of
        theirs waits for, a fraction of a second later.

        Returns an empty list after *wait_seconds* without a message, while paused, and once closed.
        """

    def pause(self) -> None:
        """Deliver no messages until `resume`. Open deliveries stay open; the pause uses up no delivery attempts."""

    def resume(self) -> None:
        """Deliver messages again. Wakes a waiting `fetch`."""

    async def close(self) -> None:
        """Leave the group. Its unsettled deliveries go to another member at once. Idempotent."""


class Bus(Protocol):
    """Transports messages from publishers to every consumer group that subscribes to their subject."""

    @property
    def is_connected(self) -> bool:
        """True while a publish can succeed."""

    @property
    def problems(self) -> Sequence[str]:
        """
        Faults that an operator has to correct, one line each; empty if there are none.

        A dependency that is only unavailable is not listed, because that ends by itself.
        """

    def publish(self, message: Message) -> asyncio.Future[None]:
        """
        Publish *message*; the future completes once the bus has durably accepted it.

        The memory adapter keeps nothing beyond the life of its process, so it has accepted a message only when every
        group has settled it: acknowledged it, or stored it as a dead letter. JetStream has accepted it once the stream
        has stored it. A message with an id that the bus remembers is not delivered again; its future completes with the
        first one. Must be called on the event loop. Cancelling the future does not stop the message.

        Raises (through the future):
            PublishRetryable: The bus cannot accept it now, and may or may not have done so: publish it again under the
                same id.
            PublishRefused: The bus never accepts it, because of its size, its subject or its headers. The caller must not
                publish it again; other messages are not affected.
            BusClosed: The bus is closed.
        """

    async def subscribe(self, consumer: str, subjects: Sequence[str]) -> Subscription:
        """
        Join the durable group *consumer*, which receives exactly *subjects* (full names, no wildcards).

        The first call creates the group; it receives what is published from then on, with or without members. A later
        call with other subjects makes the group receive those instead.
        """

    async def close(self, grace_seconds: float = 5.0) -> None:
        """
        Deliver no more messages, wait up to *grace_seconds* for open deliveries to be settled, and wake every waiting
        call.

        Publishes that are still pending end with `BusClosed`. Idempotent.
        """
