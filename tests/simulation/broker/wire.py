"""The protocol of NATS as a server reads and writes it."""

from __future__ import annotations

__all__ = ["CommandReader", "NatsMessage", "command_ends", "command_name", "header_block", "headers_of", "is_match", "matches_any"]

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

_LINE_END = b"\r\n"


class NatsMessage(NamedTuple):
    """A message; *head* is the block of its headers, or empty."""

    subject: str
    reply: str
    head: bytes
    body: bytes

    def delivered(self, sid: str) -> bytes:
        """Return the message as the subscription *sid* receives it."""
        words = f"{self.subject} {sid} {self.reply}" if self.reply else f"{self.subject} {sid}"
        sizes = f"{len(self.head)} {len(self.head) + len(self.body)}" if self.head else f"{len(self.body)}"
        line = f"{'HMSG' if self.head else 'MSG'} {words} {sizes}\r\n"
        return b"%s%s%s\r\n" % (line.encode(), self.head, self.body)


class CommandReader:
    """Splits what one client sends into commands."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> Iterator[NatsMessage | list[str]]:
        """Yield what is complete: a message, or the words of another command."""
        self._data += data
        start = 0
        while (end := self._data.find(_LINE_END, start)) >= 0:
            line = self._data[start:end]
            words = line.split()
            name = words[0].upper() if words else b""
            at = end + 2
            if name in (b"PUB", b"HPUB"):
                size, head_size = int(words[-1]), int(words[-2]) if name == b"HPUB" else 0
                if len(self._data) < at + size + 2:
                    break
                has_reply = len(words) == (5 if name == b"HPUB" else 4)
                reply = words[2].decode() if has_reply else ""
                head, body = self._data[at : at + head_size], self._data[at + head_size : at + size]
                start = at + size + 2
                yield NatsMessage(words[1].decode(), reply, head, body)
            else:
                start = at
                yield line.decode().split(" ", 1) if name == b"CONNECT" else line.decode().split()
        self._data = self._data[start:]


@lru_cache(maxsize=65_536)
def matches_any(patterns: tuple[str, ...], subject: str) -> bool:
    """Return whether one of *patterns* is for *subject*; without patterns every subject is."""
    return not patterns or any(is_match(pattern, subject) for pattern in patterns)


def is_match(pattern: str, subject: str) -> bool:
    """Return whether *pattern*, which may have wildcards, is for *subject*."""
    if pattern == subject:
        return True
    if pattern[-1] != ">" and "*" not in pattern:
        return False
    wanted, found = pattern.split("."), subject.split(".")
    for at, token in enumerate(wanted):
        if token == ">":
            return len(found) > at
        if at >= len(found) or token not in ("*", found[at]):
            return False
    return len(wanted) == len(found)


def header_block(status: str, headers: Mapping[str, str] | None = None) -> bytes:
    """Return a block with a status of the server (``404 No Messages``) and *headers*."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return f"NATS/1.0 {status}\r\n{lines}\r\n".encode() if status else f"NATS/1.0\r\n{lines}\r\n".encode()


def headers_of(head: bytes) -> dict[str, str]:
    """Return the headers in the block *head*."""
    lines = (line.partition(b":") for line in head.split(_LINE_END)[1:])
    return {name.decode("utf-8", "replace"): value.strip().decode("utf-8", "replace") for name, colon, value in lines if colon}


def command_ends(data: bytes) -> Iterator[int]:
    """Yield where each command of a client in *data* ends; the last one may be incomplete."""
    at = 0
    while at < len(data):
        line_end = data.find(_LINE_END, at)
        words = data[at:line_end].split()
        is_message = bool(words) and words[0] in (b"PUB", b"HPUB")
        at = len(data) if line_end < 0 else min(len(data), line_end + 2 + (int(words[-1]) + 2 if is_message else 0))
        yield at


def command_name(command: bytes) -> str:
    """Return what a client does with *command*."""
    if not command.startswith((b"PUB ", b"HPUB ")):
        return command[:5].split()[0].decode().lower()
    subject = command.split(b" ", 2)[1]
    if subject.startswith(b"$JS.ACK."):
        body = command.partition(_LINE_END)[2]
        return {b"+": "ack", b"-": "nak"}.get(body[:1], "ack") if not body.startswith(b"+WPI") else "extension"
    return "request" if subject.startswith(b"$") else "publish"
