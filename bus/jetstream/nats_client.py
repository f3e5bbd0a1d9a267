"""
The client of nats-py, with changes for speed and for robustness.

Three changes make faster what happens thousands of times a second: writing messages, with one write for each turn of the
event loop; passing what arrives to its handler (`bus.jetstream.message_parser`); reading and writing header blocks. The
result is the same as the client's; ``tests/bus/jetstream/test_nats_client.py`` compares the two. They also prevent that one malformed
message costs the connection, again on each delivery. A fourth change makes a task cancellable that waits for a server
that hangs. A fifth closes the sockets of servers that hang, and a sixth renews the credentials at each connection.
"""

from __future__ import annotations

__all__ = ["MessageTooLarge", "NatsClient"]

import asyncio
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import (
    BadHeaderError,
    BadSubjectError,
    ConnectionClosedError,
    MaxPayloadError,
    OutboundBufferLimitError,
)

from bus.jetstream.delivery import parse_headers
from bus.jetstream.message_parser import Handler, MessageParser

_SUBJECT = re.compile(r"[^\s]+").fullmatch
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_LINE_ENDS = str.maketrans({"\r": " ", "\n": " "})


class MessageTooLarge(MaxPayloadError):
    """The message is larger than the server allows."""

    def __init__(self, size: int, size_max: int) -> None:
        super().__init__(size, size_max)
        self.size, self.size_max = size, size_max

    def __str__(self) -> str:
        return f"{self.size:,} bytes with its headers, and the server allows {self.size_max:,} (max_payload)"


class NatsClient(Client):
    """
    The client, with `publish_fast` and `subscribe_fast` beside its ``publish`` and ``subscribe``.

    *renewed* returns the options ``user``, ``password`` and ``tls`` as they are now; it is called before each connection.
    """

    def __init__(self, renewed: Callable[[], dict[str, Any]] = dict) -> None:
        super().__init__()
        self._renewed = renewed
        self._handlers: dict[int, Handler] = {}
        self._ps = MessageParser(self, self._handlers)

    async def subscribe_fast(self, subject: str, handler: Handler) -> Subscription:
        """
        Subscribe to *subject*; *handler* is called for each message while it is read from the connection.

        What it raises goes to the error callback. The subscription has no limits and no messages of its own.
        """
        id = self._sid + 1  # the one that `subscribe` takes before its first await
        self._handlers[id] = handler
        try:
            return await self.subscribe(subject, cb=_ignore)
        except BaseException:
            self._handlers.pop(id, None)
            raise

    async def publish_fast(
        self, subject: str, body: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """
        Write a message as ``publish`` does; line ends in header values become spaces.

        Raises:
            nats.errors.Error: It can never be sent, or not now: the connection is lost and the buffer is full.
        """
        self.write(subject, body, reply, headers)
        await self.flush_written()

    def write(self, subject: str, body: bytes, reply: str, headers: dict[str, str] | None) -> bool:
        """
        Put a message into the buffer; line ends in header values become spaces.

        Return True if the buffer is full: then the caller has to call `flush_written`, which waits for the server.

        Raises:
            nats.errors.Error: It can never be sent, or not now: the connection is lost and the buffer is full.
        """
        if not _SUBJECT(subject):
            raise BadSubjectError
        if self.is_closed:
            raise ConnectionClosedError
        if headers is None:
            size = len(body)
            command = b"PUB %s %s %d\r\n%s\r\n" % (subject.encode(), reply.encode(), size, body)
        else:
            block = _block(headers)
            size = len(block) + len(body)
            command = b"HPUB %s %s %d %d\r\n%s%s\r\n" % (subject.encode(), reply.encode(), len(block), size, block, body)
        if size > self.max_payload:  # the server counts the headers, and closes the connection; the client does not count them
            raise MessageTooLarge(size, self.max_payload)
        if not self.is_connected and size + self.pending_data_size > self._max_pending_size:
            raise OutboundBufferLimitError
        self._pending.append(command)
        self._pending_data_size += len(command)
        return self._pending_data_size > self._max_pending_size

    async def flush_written(self) -> None:
        """Pass what was written to the socket; if the server does not keep up, let the client do it, and wait if much is left."""
        if self._pending and self.is_connected:
            writer = getattr(self._transport, "_io_writer", None)
            if writer is None or writer.transport.get_write_buffer_size():
                is_full = self._pending_data_size > self._max_pending_size
                if is_full or (self._flush_queue is not None and self._flush_queue.empty()):
                    await self._flush_pending(force_flush=is_full)
            else:
                pending, self._pending, self._pending_data_size = self._pending, [], 0
                writer.write(b"".join(pending))

    def abort(self) -> None:
        """Close the socket, if there is one, and drop what a server that hangs has not read yet. Idempotent."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def _connect_to_server(self, s: Any) -> None:
        self.abort()  # the socket of the previous attempt, to a server that then did not respond: the client would not close it
        self.options.update(self._renewed())
        if self.options.get("tls") is None:
            self.options.pop("tls", None)  # without the option the client trusts the system's certificates
        await super()._connect_to_server(s)

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        # The client swallows a cancellation that arrives while it waits here, and the cancelled task would continue.
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        flushed = await super()._flush_pending(force_flush)
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
        return flushed

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        return parse_headers(headers) or None if headers else None

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        super()._remove_sub(sid, max_msgs)
        self._handlers.pop(sid, None)


async def _ignore(message: Any) -> None:
    """Do nothing: the message of a subscription with a handler never gets here."""


@lru_cache(256)
def _block_template(names: tuple[str, ...]) -> str:
    """
    Return the header block with *names* and a place for each value.

    Raises:
        BadHeaderError: A name is not a token (RFC 9110, section 5.6.2).
    """
    if not all(map(_NAME, names)):
        raise BadHeaderError(", ".join(names))
    lines = "".join([f"{name.replace('%', '%%')}: %s\r\n" for name in names])
    return f"NATS/1.0\r\n{lines}\r\n"


def _block(headers: dict[str, str]) -> bytes:
    template, lines = _block_template(tuple(headers)), len(headers) + 2
    block = template % tuple(headers.values())
    if block.count("\n") != lines or block.count("\r") != lines:
        block = template % tuple([value.translate(_LINE_ENDS) for value in headers.values()])
    return block.encode()
