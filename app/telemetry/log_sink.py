"""The sink of the log: it writes lines to one stream and perhaps to one file, and redacts secrets in them."""

from __future__ import annotations

__all__ = ["LINES_MAX", "LogSink"]

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable
from io import FileIO
from typing import TYPE_CHECKING, Any, TextIO

from loguru import logger

from app.telemetry.log_format import json_line, text_line

if TYPE_CHECKING:
    from loguru import Message

LINES_MAX = 256
"""Lines that wait for the end of an iteration of the event loop; further ones are written at once."""

_SECRET_CHARACTERS_MIN = 6
_WARNING = logger.level("WARNING").no

_Write = Callable[[bytes], None]


class LogSink:
    """
    A sink for loguru.

    On an event loop, all lines of one iteration are written together: each write releases the interpreter's lock, and a
    busy thread would make the loop wait for it line by line. Warnings and errors are written at once.
    """

    def __init__(
        self, stream: TextIO | None, format: str, file: str | os.PathLike[str] | None, secrets: Iterable[str]
    ) -> None:
        self._file = open(file, "ab", buffering=0) if file is not None else None  # noqa: SIM115 - `stop` closes it
        self._write_stream = _stream_writer(stream)
        self._write_file = _file_writer(self._file) if self._file else None
        is_coloured = format == "text" and _is_terminal(stream) and "NO_COLOR" not in os.environ
        self._text: Callable[[Message], bytes] | None = None
        if format == "text":
            self._text = lambda message: text_line(message, is_coloured)
        self.accepts_json = self._text is None
        """True if `write_json` may be used: the stream gets JSON, too, and the sink is not stopped."""
        self._second, self._time_to_second = -1, ""
        self._stream_lines: list[bytes] = []
        self._file_lines: list[bytes] = []
        self._secrets = sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True)

    def write(self, message: Message) -> None:
        """Write one message of loguru; never raises."""
        line, record = b"", message.record
        if self._text is None or self._write_file is not None:
            stack = str(message).rstrip("\n")
            line = json_line(
                self._now(), record["level"].name, record["name"], record["message"], record["extra"], stack
            )
        is_urgent = record["level"].no >= _WARNING
        self._add(line, line if self._text is None else self._text(message), is_urgent)

    def write_json(self, name: str, message: str, fields: dict[str, Any]) -> None:
        """Write one JSON line at INFO, in the form of `write`; never raises."""
        line = json_line(self._now(), "INFO", name, message, fields)
        self._add(line, line, is_urgent=False)

    def _add(self, file_line: bytes, stream_line: bytes, is_urgent: bool) -> None:
        if self._write_file is not None:
            self._file_lines.append(self._redacted(file_line))
        self._stream_lines.append(self._redacted(stream_line))
        if is_urgent or len(self._stream_lines) >= LINES_MAX:
            self.write_pending()
        elif len(self._stream_lines) == 1:
            try:
                asyncio.get_running_loop().call_soon(self.write_pending)
            except RuntimeError:  # this thread has no loop, so there is nothing to wait for
                self.write_pending()

    def write_pending(self) -> None:
        """
        Write the lines that wait.

        The name must not be flush: loguru would call a sink's flush after every line.
        """
        lines, self._stream_lines = self._stream_lines, []
        if lines:
            self._write_stream(b"".join(lines))
        lines, self._file_lines = self._file_lines, []
        if lines and self._write_file is not None:
            self._write_file(b"".join(lines))

    def _now(self) -> str:
        """Return the time in RFC 3339. The record has one, too, but to convert that to UTC costs more than all the rest."""
        second, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        if second != self._second:
            self._second, self._time_to_second = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._time_to_second}.{microseconds:06d}Z"

    def stop(self) -> None:
        """Write the lines that wait and close the file; loguru calls this when it removes the sink."""
        self.accepts_json = False
        self.write_pending()
        if self._file is not None:
            self._file.close()

    def _redacted(self, line: bytes) -> bytes:
        for secret in self._secrets:
            if secret in line:
                line = line.replace(secret, b"***")
        return line


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _stream_writer(stream: TextIO | None) -> _Write:
    """Return a function that writes to *stream*, bypassing its buffer if it has a descriptor: no failed line stays in it."""
    if stream is None:
        return lambda data: None
    try:
        stream.flush()
        return _file_writer(FileIO(stream.fileno(), "wb", closefd=False))
    except (OSError, ValueError):  # in memory only, or closed already
        pass

    def write(data: bytes) -> None:
        try:
            stream.write(data.decode())
            stream.flush()
        except (OSError, ValueError):
            pass

    return write


def _file_writer(file: FileIO) -> _Write:
    def write(data: bytes) -> None:
        try:
            written = file.write(data)
            # A pipe or a disk may take a part. None: it takes nothing now, and the log must not wait.
            while written is not None and written < len(data):
                data = data[written:]
                written = file.write(data)
        except (OSError, ValueError):
            pass

    return write


def _forms(secret: str) -> Iterable[bytes]:
    """Yield the forms of *secret* in a line; a secret that is too short is ignored, it would redact innocent text."""
    if len(secret) >= _SECRET_CHARACTERS_MIN:
        yield secret.encode("utf-8", "backslashreplace")
        yield json.dumps(secret, ensure_ascii=False)[1:-1].encode("utf-8", "backslashreplace")
