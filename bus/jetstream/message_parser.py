"""
The parser of what a NATS server sends: messages of the bus go straight to their handlers, all else to nats-py's parser.

The client matches several regular expressions for each message, puts it into a queue, and a task for each subscription
takes it out again. Thousands of messages a second arrive on few subscriptions, so these get theirs by a plain call.
"""

from __future__ import annotations

__all__ = ["Handler", "MessageParser"]

from collections.abc import Callable, Mapping
from typing import Any

from nats.protocol.parser import Parser

Handler = Callable[[str, str, bytes, bytes], None]
"""Handles a message: ``handler(subject, reply, headers, body)``; *headers* is the block that NATS defines, or empty."""

_LINE_END = b"\r\n"


class MessageParser(Parser):
    """Calls *handlers*, by the id of their subscription; what they raise goes to the error callback of *client*."""

    def __init__(self, client: Any, handlers: Mapping[int, Handler]) -> None:
        self._handlers = handlers
        self._resets = 0
        super().__init__(client)

    def reset(self) -> None:
        """Forget what is incomplete: a new connection begins."""
        super().reset()
        self._resets += 1
        self._chunks: list[bytes] = []
        self._missing = 0
        """How many bytes have to be added to the chunks before it makes sense to look at them again."""

    async def parse(self, data: bytes = b"") -> None:
        """Process what is complete in *data* and what came before; keep the rest."""
        if self._chunks:
            self._chunks.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        handlers, resets, start = self._handlers, self._resets, 0
        while (line_end := data.find(_LINE_END, start)) >= 0:
            arguments = data[start:line_end].split()
            end = line_end + 2
            message = _message_arguments(arguments)
            if message is not None:
                id, head_size, size = message
                end += size + 2
                if len(data) < end:
                    break
                handler = handlers.get(id)
                if handler is not None:
                    body_at = line_end + 2 + head_size
                    reply = arguments[3].decode() if len(arguments) > _ARGUMENTS_MIN[arguments[0]] else ""
                    try:
                        handler(arguments[1].decode(), reply, data[line_end + 2 : body_at], data[body_at : end - 2])
                    except Exception as error:  # an error of one message must not end the reading of the others
                        await self.nc._error_cb(error)
                    start = end
                    continue
            await super().parse(data[start:end])
            if self._resets != resets:
                return
            start = end
        if start < len(data):
            self._chunks.append(data[start:])
            self._missing = max(1, end - len(data)) if line_end >= 0 else 1


_ARGUMENTS_MIN = {b"MSG": 4, b"HMSG": 5}
"""The number of words in the line before a message without a reply subject."""


def _message_arguments(words: list[bytes]) -> tuple[int, int, int] | None:
    """Return subscription id, size of the headers and size in all, if *words* are the line before a message."""
    count_min = _ARGUMENTS_MIN.get(words[0], 0) if words else 0
    if not count_min or not 0 <= len(words) - count_min <= 1:
        return None
    try:
        size = int(words[-1])
        head_size = int(words[-2]) if count_min > 4 else 0
        return (int(words[2]), head_size, size) if 0 <= head_size <= size else None
    except ValueError:
        return None
