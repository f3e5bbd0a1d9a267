"""
The form of a message on NATS, and back.

Two fields of a `bus.port.Message` travel as headers: its id (``Nats-Msg-Id``, by which a stream recognises a duplicate)
and its key (the CloudEvents attribute ``subject``: what the event is about).
"""

from __future__ import annotations

__all__ = ["KEY", "MESSAGE_ID", "AckMetadata", "headers_of", "message_of", "parse_ack_subject"]

from collections.abc import Mapping

from attrs import frozen

from bus.port import Message

MESSAGE_ID = "Nats-Msg-Id"
KEY = "ce-subject"

_SHORT_FORM_TOKENS = 9
_LONG_FORM_TOKENS_MIN = 11


@frozen
class AckMetadata:
    """What the server tells about a delivery in its ack subject. *tries* counts from 1; *stored_at_ns* is a Unix time."""

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


def message_of(subject: str, body: bytes, headers: Mapping[str, str] | None, metadata: AckMetadata) -> Message:
    """
    Return the message as it was published.

    A message that was published by other means may lack an id. It gets the id of its event (``ce-id``), or else its
    stream and sequence.
    """
    remaining = dict(headers or {})
    key = remaining.pop(KEY, "")
    id = remaining.pop(MESSAGE_ID, "") or remaining.get("ce-id") or f"{metadata.stream}:{metadata.sequence}"
    return Message(subject, id, body, key, remaining)
