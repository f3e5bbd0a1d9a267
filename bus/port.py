"""
The bus as its callers see it: protocols whose docstrings promise behaviour.

The bus carries bytes under a subject to *groups*. Every group that listens to a subject hears every message on it at
least once, in no promised order; the members of one group share the work. ``tests/bus/contract.py`` states each
promise as a test, and every adapter passes the same suite.
"""

from __future__ import annotations

__all__ = [
    "ACK_WAIT_SECONDS",
    "DEDUP_SECONDS",
    "MAX_TRIES",
    "NO_ANSWER",
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
MAX_TRIES = 5

DEDUP_SECONDS = 120.0
"""For how long the bus recognises the id of a message that it has accepted."""

NO_ANSWER = "no_answer"
"""The error code of a dead letter whose last delivery was never acknowledged, negatively or otherwise."""


@define  # not frozen, which would take three times as long to make; nobody changes one all the same
class Message:
    """
    Bytes on their way, and what the wire needs to know about them.

    *id* is the broker's: two messages with one id are one message, as far as the bus remembers. The event's own id
    travels in the headers (``ce-id``), so that a replayed dead letter is a new message that carries an old event.
    *key* names what the message is about (an order, a product); the bus does not look at it.
    """

    subject: str
    id: str
    body: bytes
    key: str = ""
    headers: Mapping[str, str] = field(factory=dict)


@frozen
class DeadLetter:
    """
    A message that a group has given up on, and why.

    *id* follows from the consumer and the message's id, so that writing it twice writes it once. *error* is a stable
    code, *detail* a sentence for a person.
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
        Return the dead letter of *consumer* for *message*, last seen *now*; its id is derived from both.

        *first_seen* is when the message was published or first delivered, or None where that is unknown: then it is *now*.
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
    """Where the bus lays down what no try could deliver."""

    async def add(self, dead_letter: DeadLetter) -> None:
        """
        Keep *letter* durably; the same id again is kept once.

        Raises:
            Exception: It is not kept. The bus holds on to the message and asks again later.
        """


class Clock(Protocol):
    """The time, from outside: tests bring a clock that they turn by hand."""

    def now(self) -> datetime:
        """Return the wall-clock time, aware, in UTC. It does not jump while the process lives."""

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Return when *seconds* have passed on this clock; zero only yields."""


class Delivery(Protocol):
    """
    A message in our hands, until we say what became of it.

    Exactly one of ack, nak and term ends it; no answer within ``ack_wait`` means it comes again. An ack after that is
    taken if nobody else has settled the message meanwhile, and is otherwise without effect. A nak or a term after that
    may be without effect, for the message comes again anyhow. No answer ever raises.
    """

    @property
    def message(self) -> Message:
        """What was published: subject, id, key, headers and body as they went in."""

    @property
    def tries(self) -> int:
        """How often the group has been handed this message, this time included: 1 to ``MAX_TRIES``."""

    async def ack(self) -> None:
        """Done: never deliver it to this group again."""

    async def nak(self, delay_seconds: float, *, error: str = "failed", detail: str = "") -> None:
        """
        Not now: deliver it again after *delay_seconds*; this spends one try.

        On the last try there is no again: the message becomes a dead letter with *error* and *detail*.
        """

    async def term(self, error: str, detail: str = "") -> None:
        """Never: make it a dead letter with *error* and *detail* now, whatever tries are left."""

    async def in_progress(self) -> None:
        """Still at it: start ``ack_wait`` anew. Spends nothing."""


class Subscription(Protocol):
    """One member of a group. The group outlives it: what arrives while nobody listens waits."""

    @property
    def consumer(self) -> str:
        """The group's name."""

    @property
    def is_paused(self) -> bool:
        """True between pause and resume."""

    async def fetch(self, limit: int, wait_seconds: float) -> list[Delivery]:
        """
        Take up to *limit* messages; wait up to *wait_seconds* for the first, and never for a second.

        Returns an empty list when the time is over, while paused, or once closed.
        """

    def pause(self) -> None:
        """Hand out nothing until `resume`. What is in hand stays in hand; no try is spent by waiting."""

    def resume(self) -> None:
        """Hand out messages again. Wakes a waiting `fetch`."""

    async def close(self) -> None:
        """Leave the group. What is in hand and unsettled goes to another member at once; idempotent."""


class Bus(Protocol):
    """Carry messages from those who say something to every group that wants to hear it."""

    @property
    def is_connected(self) -> bool:
        """True while a publish has a chance."""

    @property
    def problems(self) -> Sequence[str]:
        """
        What a person has to put right before the bus is as it should be, one line each; empty when all is well.

        A dependency that is merely away is none: that heals by itself.
        """

    def publish(self, message: Message) -> asyncio.Future[None]:
        """
        Hand over *message*; the future is done once the bus is answerable for it.

        In one process nothing outlives the process, so the memory adapter is answerable only when every group has
        settled the message (acknowledged it or laid it down as a dead letter). JetStream is when the stream has it.
        An id that the bus still remembers is not delivered again; the future then follows the first one.
        Must be called on the event loop. The future may be cancelled: the message goes its way all the same.

        Raises (through the future):
            Retry: Not now. Whether the message got through is unknown: send it again under the same id.
            BusClosed: The bus is closed.
        """

    async def subscribe(self, consumer: str, subjects: Sequence[str]) -> Subscription:
        """
        Join the durable group *consumer*, which hears exactly *subjects* (names in full, no wildcards).

        The first call founds the group; it hears what is published from then on, whether or not a member is there.
        A later call with other subjects makes the group hear those instead.
        """

    async def close(self, grace_seconds: float = 5.0) -> None:
        """
        Take no more, let what is in hand be settled for up to *grace_seconds*, and wake everyone who waits.

        Unsettled publishes end with `BusClosed`. Idempotent.
        """
