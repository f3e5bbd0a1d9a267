"""The sink of the log: it formats lines, redacts secrets in them, and queues them for one stream and perhaps one file."""

from __future__ import annotations

__all__ = ["LogSink"]

import json
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

from loguru import logger

from app.telemetry.log_format import json_line, text_line, text_of
from app.telemetry.log_writer import Destination, LogFile, LogWriter, destination_of

if TYPE_CHECKING:
    from loguru import Message

_SECRET_CHARACTERS_MIN = 6
_DROPPED = "log lines were dropped"
_WARNING = logger.level("WARNING").no


class LogSink:
    """
    A sink for loguru. It never blocks: `LogWriter` writes the lines in threads of their own, warnings and errors at once.

    Raises:
        OSError: *file* cannot be opened.
    """

    def __init__(
        self, stream: TextIO | None, format: str, file: str | os.PathLike[str] | None, secrets: Iterable[str]
    ) -> None:
        is_coloured = format == "text" and _is_terminal(stream) and "NO_COLOR" not in os.environ
        self._text: Callable[[Message], bytes] | None = None
        if format == "text":
            self._text = lambda message: text_line(message, is_coloured)
        self.accepts_json = self._text is None
        """True if `write_json` may be used: the stream gets JSON, too, and the sink is not stopped."""
        self._second, self._time_to_second = -1, ""
        self._secrets: list[bytes] = []
        self.redact(secrets)
        self._file = LogWriter(LogFile(file), self._dropped_json, self._on_refused) if file is not None else None
        dropped_line = self._dropped_json if self._text is None else self._dropped_text
        self._stream = LogWriter(destination_of(stream), dropped_line, self._on_refused) if stream is not None else None
        self._writers = [writer for writer in (self._stream, self._file) if writer is not None]

    @property
    def dropped(self) -> int:
        """Lines that no longer fitted into a queue or that a destination refused."""
        return sum(writer.dropped for writer in self._writers)

    def write(self, message: Message) -> None:
        """Queue one message of loguru; never raises."""
        line, record = b"", message.record
        if self._text is None or self._file is not None:
            stack = str(message).rstrip("\n")
            line = json_line(
                self._now(), record["level"].name, record["name"], record["message"], record["extra"], stack
            )
        is_urgent = record["level"].no >= _WARNING
        self._put(line, line if self._text is None else self._text(message), is_urgent)

    def write_json(self, name: str, message: str, fields: dict[str, Any]) -> None:
        """Queue one JSON line at INFO, in the form of `write`; never raises."""
        line = json_line(self._now(), "INFO", name, message, fields)
        self._put(line, line, is_urgent=False)

    def write_plain(self, text: str) -> None:
        """Queue a line for the stream as it is, after the lines before it."""
        if self._stream is not None:
            self._stream.put(self._redacted(f"{text}\n".encode("utf-8", "backslashreplace")), is_urgent=True)

    def redact(self, secrets: Iterable[str]) -> None:
        """Replace each occurrence of a text in *secrets* by ``***``, too."""
        forms = {form for secret in secrets for form in _forms(secret)}
        self._secrets = sorted(forms.union(self._secrets), key=len, reverse=True)

    def reopen(self) -> None:
        """Reopen the file before the next line."""
        if self._file is not None:
            self._file.reopen()

    def wait_until_written(self, seconds: float) -> bool:
        """
        Wait until all lines are written, for up to *seconds* each; return whether they are.

        The name must not be flush: loguru would call a sink's flush after every line.
        """
        written = [writer.flush(seconds) for writer in self._writers]
        return all(written)

    def stop(self) -> None:
        """Write the lines that wait and close the file; loguru calls this when it removes the sink."""
        self.accepts_json = False
        for writer in self._writers:
            writer.stop()

    def _put(self, file_line: bytes, stream_line: bytes, is_urgent: bool) -> None:
        if self._file is not None:
            self._file.put(self._redacted(file_line), is_urgent)
        if self._stream is not None:
            self._stream.put(self._redacted(stream_line), is_urgent)

    def _on_refused(self, destination: Destination, reason: str) -> None:
        """Report on the other destination that *destination* refuses lines. loguru is bypassed: it may be stopping this."""
        fields = {
            "destination": destination.name,
            "reason": reason,
            "do": "lines are dropped until it takes them again",
        }
        if destination.name == LogFile.name and self._stream is not None:
            self._stream.put(
                self._line(fields, "log lines cannot be written", is_json=self._text is None), is_urgent=True
            )
        elif destination.name != LogFile.name and self._file is not None:
            self._file.put(self._line(fields, "log lines cannot be written", is_json=True), is_urgent=True)

    def _dropped_json(self, count: int) -> bytes:
        return self._line({"lines": count}, _DROPPED, is_json=True)

    def _dropped_text(self, count: int) -> bytes:
        return self._line({"lines": count}, _DROPPED, is_json=False)

    def _line(self, fields: dict[str, Any], message: str, *, is_json: bool) -> bytes:
        if is_json:
            return json_line(self._now(), "WARNING", __name__, message, fields)
        return text_of(time.strftime("%H:%M:%S.000"), "WARNING", __name__, message, fields)

    def _now(self) -> str:
        """Return the time in RFC 3339. The record has one, too, but to convert that to UTC costs more than all the rest."""
        second, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        if second != self._second:
            self._second, self._time_to_second = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._time_to_second}.{microseconds:06d}Z"

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


def _forms(secret: str) -> Iterable[bytes]:
    """Yield the forms of *secret* in a line; a secret that is too short is ignored, it would redact innocent text."""
    if len(secret) >= _SECRET_CHARACTERS_MIN:
        yield secret.encode("utf-8", "backslashreplace")
        yield json.dumps(secret, ensure_ascii=False)[1:-1].encode("utf-8", "backslashreplace")
