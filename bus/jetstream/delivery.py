"""
A message on NATS: its form, one delivery of it by JetStream, and how that is acknowledged.

Two fields of a `bus.port.Message` travel as headers: its id (``Nats-Msg-Id``, by which a stream recognises a duplicate)
and its key (the CloudEvents attribute ``subject``: what the event is about).

An ack, nak, term or in-progress is sent without waiting for the server; if one is lost, the server redelivers the
message. Two things are kept here because the server does not know them: that a later delivery may have been made
meanwhile, and that the last try becomes a dead letter before the message is terminated at the server.
"""

from __future__ import annotations

__all__ = [
    "KEY",
    "MESSAGE_ID",
    "AckMetadata",
    "Delivery",
    "DeliveryOwner",
    "headers_of",
    "message_of",
    "parse_ack_subject",
    "parse_headers",
]

from collections.abc import Callable
from typing import NamedTuple, Protocol

from attrs import define

from bus.port import Message, Subscription

MESSAGE_ID = "Nats-Msg-Id"
KEY = "ce-subject"

_SHORT_FORM_TOKENS = 9
_LONG_FORM_TOKENS_MIN = 11
_NANOSECONDS = 1_000_000_000

_LINE_END = b"\r\n"
_HEAD = b"NATS/1.0\r\n"
_STATUS = slice(len(_HEAD) - 1, len(_HEAD) + 2)
"""Where the status of a message of the server itself stands in its first line; a space and the description follow."""


class DeliveryOwner(Protocol):
    """What a delivery needs from the consumer that has received it."""

    now: Callable[[], float]
    """The monotonic clock."""
    ack_wait_seconds: float
    max_tries: int
    send: Callable[[str, bytes], None]
    """Send a body to a subject."""

    def settled(self, delivery: Delivery, *, is_late: bool) -> None:
        """Note that *delivery* is acknowledged, and with it every other delivery of the same message."""

    def release(self, delivery: Delivery) -> None:
        """Note that *delivery* is no longer in hand."""

    def dead_letter(self, delivery: Delivery, error: str, detail: str) -> None:
        """Make the message of *delivery* a dead letter."""


@define(eq=False)
class Delivery:
    """One delivery of a message; see `bus.port.Delivery`."""

    message: Message
    tries: int
    owner: DeliveryOwner
    sequence: int
    stored_at_ns: int
    _ack_subject: str
    overdue_at: float
    touched_at: float
    """When the server has last started ``ack_wait`` for it, on the monotonic clock; and `overdue_at` when that ends."""
    subscription: Subscription | None = None
    is_answered: bool = False
    is_settled_elsewhere: bool = False
    """True once an earlier or later delivery of the same message has been acknowledged."""

    async def ack(self) -> None:
        if not self.is_answered:
            self.is_answered = True
            self.owner.settled(self, is_late=self.is_late())
            self.confirm()

    async def nak(self, delay_seconds: float, *, error: str = "failed", detail: str = "") -> None:
        if self.is_answered:
            return
        self.is_answered = True
        if self.is_late():
            self.owner.release(self)
        elif self.tries >= self.owner.max_tries:
            self.owner.dead_letter(self, error, detail)
        else:
            self.owner.release(self)
            self.requeue(delay_seconds)

    async def term(self, error: str, detail: str = "") -> None:
        if self.is_answered:
            return
        self.is_answered = True
        if self.is_late():
            self.owner.release(self)
        else:
            self.owner.dead_letter(self, error, detail)

    async def in_progress(self) -> None:
        if not self.is_answered and not self.is_late():
            self.extend()

    def confirm(self) -> None:
        """Send the ack: the server never delivers the message to this consumer again."""
        self.owner.send(self._ack_subject, b"+ACK")

    def extend(self) -> None:
        """Make the server start ``ack_wait`` again."""
        owner = self.owner
        self.touched_at = now = owner.now()
        self.overdue_at = now + owner.ack_wait_seconds
        owner.send(self._ack_subject, b"+WPI")

    def extend_if_stale(self) -> bool:
        """Extend the ack deadline if a third of ``ack_wait`` has passed; return False if the message is settled elsewhere."""
        if self.is_settled_elsewhere:
            return False
        if self.touched_at <= self.owner.now() - self.owner.ack_wait_seconds / 3:
            self.extend()
        return True

    def supersede(self, later: Delivery) -> None:
        """Take the place of *later*, another delivery of the same message: acknowledge that one from now on."""
        self._ack_subject, self.touched_at, self.overdue_at = later._ack_subject, later.touched_at, later.overdue_at

    def requeue(self, delay_seconds: float = 0.0) -> None:
        """Send the nak: the server redelivers the message after *delay_seconds*."""
        nak = b'-NAK {"delay": %d}' % round(delay_seconds * _NANOSECONDS) if delay_seconds > 0 else b"-NAK"
        self.owner.send(self._ack_subject, nak)

    def terminate(self) -> None:
        """Send the term: the server never delivers the message to this consumer again."""
        self.owner.send(self._ack_subject, b"+TERM")

    def is_late(self) -> bool:
        """Return whether ``ack_wait`` is over, or nearly: then no nak, term or in-progress may be sent."""
        # The server would take a nak or a term for one of a later delivery. It counts from when it has sent the message,
        # so this side stops a little earlier. A message whose answer is dropped here is redelivered in any case.
        return self.owner.now() >= self.overdue_at - self.owner.ack_wait_seconds / 50


class AckMetadata(NamedTuple):
    """What the server reports about a delivery in its ack subject. *tries* counts from 1; *stored_at_ns* is a Unix time."""

    stream: str
    consumer: str
    tries: int
    sequence: int
    stored_at_ns: int


def parse_ack_subject(reply: str) -> AckMetadata | None:
    """
    Parse the ack subject *reply*, in the short form of today or the long one with a domain and an account.

    Returns:
        None: This is not an ack subject: the message is a status of the server, or does not come from a consumer.
    """
    tokens = reply.split(".")
    if tokens[:2] != ["$JS", "ACK"]:
        return None
    if len(tokens) >= _LONG_FORM_TOKENS_MIN:
        tokens = tokens[2:]
    elif len(tokens) != _SHORT_FORM_TOKENS:
        return None
    try:
        return AckMetadata(tokens[2], tokens[3], int(tokens[4]), int(tokens[5]), int(tokens[7]))
    except ValueError:
        return None


def headers_of(message: Message) -> dict[str, str]:
    """Return the NATS headers of *message*; a new dict each time, because the client may add to it."""
    headers = {**message.headers, MESSAGE_ID: message.id}
    if message.key:
        headers[KEY] = message.key
    return headers


def message_of(subject: str, body: bytes, headers: dict[str, str] | None, metadata: AckMetadata) -> Message:
    """
    Return the message as it was published; it takes *headers* over.

    A message that was published by other means may lack an id. It gets the id of its event (``ce-id``), or else its
    stream and sequence.
    """
    remaining = headers or {}
    key = remaining.pop(KEY, "")
    id = remaining.pop(MESSAGE_ID, "") or remaining.get("ce-id") or f"{metadata.stream}:{metadata.sequence}"
    return Message(subject, id, body, key, remaining)


def parse_headers(block: bytes) -> dict[str, str]:
    """
    Return the headers in *block*; ``Status`` and ``Description`` are those of a message of the server itself.

    An unreadable block counts as none: an error would end the reading, again on each delivery of the message.
    """
    try:
        if block.startswith(_HEAD):
            return _parse_lines(block[len(_HEAD) :])
        line, _, lines = block.partition(_LINE_END)
        status, description = line[_STATUS].strip().decode(), line[_STATUS.stop + 1 :].decode()
        found = {"Status": status} if status.isdigit() else {}
        if description:
            found["Description"] = description
        return found | _parse_lines(lines)
    except UnicodeDecodeError:
        return {}


def _parse_lines(lines: bytes) -> dict[str, str]:
    try:
        parted = [line.partition(":") for line in lines.decode().split("\r\n")]
        return {name.strip(): value.strip() for name, colon, value in parted if colon and name.isascii()}
    except UnicodeDecodeError:
        found = (line.partition(b":") for line in lines.split(_LINE_END))
        return {
            name.strip().decode(): value.strip().decode("utf-8", "replace")
            for name, colon, value in found
            if colon and name.isascii()
        }
