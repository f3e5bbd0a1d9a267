"""JSON messages between two processes of one machine, over a connected stream socket."""

from __future__ import annotations

__all__ = ["Channel", "Message"]

import asyncio
from collections.abc import Callable
from typing import Any, cast

import orjson

Message = list[Any]
"""A JSON array whose first member names the kind of the message."""

_LENGTH_BYTES = 4


class Channel(asyncio.Protocol):
    """
    Sends and receives messages in their order.

    The messages that are sent within one iteration of the event loop share one write. On the wire, such a group is the
    length of its JSON text in 4 bytes, big-endian, and the text: an array of messages. *on_message* gets each message and
    must not raise; *on_close* is called once, when the other side has closed or ended.
    """

    def __init__(self, on_message: Callable[[Message], None], on_close: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._to_send: list[Message] = []
        self._received = bytearray()

    @property
    def is_open(self) -> bool:
        """The other side may receive what is sent."""
        return self._transport is not None

    def send(self, message: Message) -> None:
        """Send *message*, which holds JSON values only; without effect once the channel is closed."""
        if not self._to_send:
            self._loop.call_soon(self.flush)
        self._to_send.append(message)

    def flush(self) -> None:
        """Write the messages that wait."""
        if self._to_send:
            text = orjson.dumps(self._to_send)
            self._to_send = []
            if self._transport is not None:
                self._transport.write(len(text).to_bytes(_LENGTH_BYTES, "big") + text)

    def close(self) -> None:
        """Send what waits, and close; *on_close* is not called."""
        self.flush()
        self._on_close = _do_nothing
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to send (`asyncio.Protocol`)."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Pass on every message that has arrived completely (`asyncio.Protocol`)."""
        received = self._received
        received += data
        start = 0
        while len(received) - start >= _LENGTH_BYTES:
            end = start + _LENGTH_BYTES + int.from_bytes(received[start : start + _LENGTH_BYTES], "big")
            if len(received) < end:
                break
            for message in orjson.loads(received[start + _LENGTH_BYTES : end]):
                self._on_message(message)
            start = end
        del received[:start]

    def connection_lost(self, error: Exception | None) -> None:
        """Report the end of the connection (`asyncio.Protocol`)."""
        self._transport = None
        self._on_close()


def _do_nothing() -> None:
    pass
