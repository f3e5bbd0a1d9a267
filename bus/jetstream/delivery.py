"""
One handing out of a message by JetStream, and what we say became of it.

Answers go out without waiting for anybody; one that is lost on the way is no answer, and the message comes again. What
the server cannot know is kept here: that somebody else may hold the message by now, and that a last try has to leave a
dead letter behind before the server lets go of it.
"""

from __future__ import annotations

__all__ = ["Delivery"]

from typing import TYPE_CHECKING

from attrs import define

from bus.port import Message

if TYPE_CHECKING:
    from bus.jetstream.consumer_group import GroupSubscription
    from bus.jetstream.pull_consumer import PullConsumer

_NANOSECONDS = 1_000_000_000


@define(eq=False)
class Delivery:
    """One handing out of a message; see `bus.port.Delivery`."""

    message: Message
    tries: int
    durable: PullConsumer
    sequence: int
    said_at_ns: int
    _reply: str
    overdue_at: float
    touched_at: float
    member: GroupSubscription | None = None
    is_answered: bool = False
    is_void: bool = False
    """Somebody else has settled it after all."""

    async def ack(self) -> None:
        if not self.is_answered:
            self.is_answered = True
            self.durable.settled(self, is_late=self._is_late())
            self.confirm()

    async def nak(self, delay_seconds: float, *, error: str = "failed", detail: str = "") -> None:
        if self.is_answered:
            return
        self.is_answered = True
        if self._is_late():
            self.durable.let_go(self)
        elif self.tries >= self.durable.max_tries:
            self.durable.give_up(self, error, detail)
        else:
            self.durable.let_go(self)
            self.put_back(delay_seconds)

    async def term(self, error: str, detail: str = "") -> None:
        if self.is_answered:
            return
        self.is_answered = True
        if self._is_late():
            self.durable.let_go(self)
        else:
            self.durable.give_up(self, error, detail)

    async def in_progress(self) -> None:
        if not self.is_answered and not self._is_late():
            self.keep()

    def confirm(self) -> None:
        """Tell the server that it is done."""
        self.durable.send(self._reply, b"+ACK")

    def keep(self) -> None:
        """Tell the server that it is in hand still."""
        durable = self.durable
        self.touched_at = now = durable.now()
        self.overdue_at = now + durable.ack_wait_seconds
        durable.send(self._reply, b"+WPI")

    def come_again(self, other: Delivery) -> None:
        """Answer for *other*, a later handing out of the same message, too."""
        self._reply, self.touched_at, self.overdue_at = other._reply, other.touched_at, other.overdue_at

    def put_back(self, delay_seconds: float = 0.0) -> None:
        """Tell the server to hand it out again."""
        delay = b'-NAK {"delay": %d}' % round(delay_seconds * _NANOSECONDS) if delay_seconds > 0 else b"-NAK"
        self.durable.send(self._reply, delay)

    def bury(self) -> None:
        """Tell the server never to hand it out again."""
        self.durable.send(self._reply, b"+TERM")

    def _is_late(self) -> bool:
        # The server would take the refusal of a message that somebody else holds by now for theirs. It counts from
        # when it sent the message, so we stop a little earlier. Whatever is dropped here comes again by itself.
        return self.durable.now() >= self.overdue_at - self.durable.ack_wait_seconds / 50
