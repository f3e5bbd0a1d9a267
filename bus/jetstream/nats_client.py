"""
The client of nats-py, with changes for speed and for robustness.

Two changes make faster what happens thousands of times a second: writing and reading header blocks. The result is the
same as the client's; ``tests/bus/jetstream/test_nats_client.py`` compares the two. Both also prevent that one malformed
message costs the connection, again on each delivery. A third change makes a task cancellable that waits for a server
that hangs. A fourth closes the sockets of servers that hang, and a fifth renews the credentials at each connection.
"""

from __future__ import annotations

__all__ = ["MessageTooLarge", "NatsClient"]

import asyncio
import re
from collections.abc import Callable
from typing import Any

from nats.aio.client import Client
from nats.errors import (
    BadHeaderError,
    BadSubjectError,
    ConnectionClosedError,
    MaxPayloadError,
    OutboundBufferLimitError,
)

_HEAD = b"NATS/1.0\r\n"
_SUBJECT = re.compile(r"[^\s]+").fullmatch
_NAMES = re.compile(r"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+\n)*").fullmatch
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
    The client, with `publish_fast` beside its ``publish``.

    *renewed* returns the options ``user``, ``password`` and ``tls`` as they are now; it is called before each connection.
    """

    def __init__(self, renewed: Callable[[], dict[str, Any]] = dict) -> None:
        super().__init__()
        self._renewed = renewed

    async def publish_fast(
        self, subject: str, body: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """
        Write a message as ``publish`` does; line ends in header values become spaces.

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
            head = b"HPUB %s %s %d %d\r\n" % (subject.encode(), reply.encode(), len(block), size)
            command = b"".join((head, block, body, b"\r\n"))
        if size > self.max_payload:  # the server counts the headers, and closes the connection; the client does not count them
            raise MessageTooLarge(size, self.max_payload)
        if not self.is_connected and size + self.pending_data_size > self._max_pending_size:
            raise OutboundBufferLimitError
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(body)
        await self._send_command(command)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

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
        # The client swallows a cancellation that arrives while it waits here, and the cancelled task would go on.
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        flushed = await super()._flush_pending(force_flush)
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
        return flushed

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            if not headers.startswith(_HEAD):
                return await super()._process_headers(headers)
            lines = headers[len(_HEAD) :].decode().split("\r\n")
            parted = [line.partition(":") for line in lines]
            return {name.strip(): value.strip() for name, colon, value in parted if colon and name.isascii()} or None
        except UnicodeDecodeError:
            return {**self._parse_header_lines(headers[len(_HEAD) :])} or None
        except Exception:
            # An unreadable header block would end the client's reading, and with it the connection, on each delivery of
            # the message. It counts as a message without headers.
            return None


def _block(headers: dict[str, str]) -> bytes:
    names = "".join([f"{name}\n" for name in headers])
    if names.count("\n") != len(headers) or not _NAMES(names):
        raise BadHeaderError(", ".join(headers))
    block = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if block.count("\n") != len(headers) or block.count("\r") != len(headers):
        block = "".join([f"{name}: {value.translate(_LINE_ENDS)}\r\n" for name, value in headers.items()])
    return f"NATS/1.0\r\n{block}\r\n".encode()
