"""
Read what a stream holds when it reports a message as a duplicate.

A stream recognises a duplicate by its id alone, and the ids of events are derived from their causes, so that they can be
predicted. Another user of the NATS account can therefore take the id of an event first: a consumer's pull request may
name any reply subject, and the server then publishes a message of the other's choice there itself, whatever that user may
publish. The true event would be taken for a duplicate and lost.
"""

from __future__ import annotations

__all__ = ["DuplicateCheck", "salted"]

import asyncio
import logging
import secrets
from collections.abc import Callable

import nats.errors
import nats.js.errors
from attrs import evolve
from nats.js import JetStreamContext

from bus.errors import PublishRetryable
from bus.jetstream.admin.topology import DEAD_LETTERS, stream_name
from bus.port import Message

CHECKS_MAX = 32
"""Duplicates that are compared together: after a crash thousands of messages are published again."""

_log = logging.getLogger(__name__)


class DuplicateCheck:
    """Compares messages with what their streams hold; *js* returns the management calls of the current connection."""

    def __init__(self, js: Callable[[], JetStreamContext]) -> None:
        self._js = js
        self._room = asyncio.Semaphore(CHECKS_MAX)

    async def is_stored(self, message: Message, sequence: int) -> bool:
        """
        Return whether the stream of *message* holds it under *sequence*: the same subject and body.

        A message that is no longer there counts as not stored: to publish it again is harmless.

        Raises:
            PublishRetryable: The stream cannot be looked up now.
        """
        stream = stream_name(message.subject)
        if stream == DEAD_LETTERS:  # a copy for the operator; a module's user cannot read that stream
            return True
        async with self._room:
            try:
                found = await self._js().get_msg(stream, seq=sequence)
            except nats.js.errors.NotFoundError:
                return False
            except (nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError, ValueError) as error:
                raise PublishRetryable(f"{message.subject}: a duplicate cannot be compared: {error!r}") from None
        if found.subject == message.subject and (found.data or b"") == message.body:
            return True
        headers = found.headers or {}
        _log.error(
            "stream %s holds a foreign message under the id of ours, which is published again under another id:"
            " subject %s, source %s, sequence %d; a NATS user of this account forges ids, see SECURITY.rst",
            *(stream, found.subject, headers.get("ce-source", "unknown"), sequence),
        )
        return False


def salted(message: Message) -> Message:
    """Return *message* under an id that cannot be predicted. Consumers recognise its event by ``ce-id`` as before."""
    return evolve(message, id=f"{message.id}.{secrets.token_hex(8)}")
