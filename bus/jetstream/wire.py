"""
How a message travels on NATS, and how it comes out again.

Two things of a `bus.port.Message` are no headers for us but are on the wire: its id (``Nats-Msg-Id``, by which a stream
recognises a copy) and its key (the CloudEvents attribute ``subject``: what the event is about).
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
    """What the server says about one handing out, in the subject on which it wants the answer."""

    stream: str
    consumer: str
    tries: int
    sequence: int
    said_at_ns: int


def parse_ack_subject(reply: str) -> AckMetadata | None:
    """
    Read *reply*, in the short form of today or the long one with a domain and an account.

    Returns:
        None: This is no message of a consumer: a status, or somebody's own idea.
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
    """Return the headers with which *message* travels; a new dict, for the client may add to it."""
    headers = {**message.headers, MESSAGE_ID: message.id}
    if message.key:
        headers[KEY] = message.key
    return headers


def message_of(subject: str, body: bytes, headers: Mapping[str, str] | None, mark: AckMetadata) -> Message:
    """Return the message as it went in. One from outside may lack an id: then its event's, or its place, names it."""
    left = dict(headers or {})
    key = left.pop(KEY, "")
    id = left.pop(MESSAGE_ID, "") or left.get("ce-id") or f"{mark.stream}:{mark.sequence}"
    return Message(subject, id, body, key, left)
