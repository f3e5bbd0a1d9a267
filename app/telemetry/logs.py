"""
One log for the whole program: loguru in front, JSON lines behind.

    from loguru import logger

    logger.info("order is over", order_id=order_id, status=status, correlation_id=correlation_id)

The message is a constant; what varies goes into keywords, which become members of the line. (loguru formats the message
with them, so braces in it would be taken for their names.) Keywords are put together before anybody looks at the level:
in hot places ask `enabled` first. What is said for every order goes through `log_fast`, which leaves loguru out.

Whatever the standard library's loggers say (aiohttp, alembic, sqlalchemy, asyncio) comes out here too. Exceptions are
shown with their stack and never with their variables. A log that cannot be written is lost; nobody who logs ever hears
of it.
"""

from __future__ import annotations

__all__ = ["FORMATS", "LEVELS", "enabled", "log_fast", "setup"]

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from io import FileIO
from typing import TYPE_CHECKING, Any, TextIO

import orjson
from loguru import logger

if TYPE_CHECKING:
    from loguru import Message, Record

FORMATS = ("json", "text")
LEVELS = ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

_ROOT = logging.getLogger()
_NUMBERS = {level: logger.level(level).no for level in LEVELS}
_ORJSON = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z
_SECRET_CHARACTERS_MIN = 6

LINES_MAX = 256
"""Lines that wait for the end of a turn of the loop; more are written at once."""

_HEAD = dict.fromkeys(("time", "level", "logger", "message"))
_COLOURS = {"TRACE": "2", "DEBUG": "36", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}

# What would move the cursor or end the line, made visible: a log is read on terminals.
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_VISIBLE_BUT_NEWLINE = {code: text for code, text in _VISIBLE.items() if code not in (9, 10)}

Write = Callable[[bytes], None]


def setup(
    level: str,
    format: str,
    file: str | os.PathLike[str] | None = None,
    stream: TextIO | None = None,
    secrets: Iterable[str] = (),
) -> None:
    """
    Send every log of at least *level* to *stream* as *format* says, and to *file* as JSON lines.

    *level* is one of `LEVELS`, *format* one of `FORMATS`, *stream* stdout unless given. Texts in *secrets* are blotted
    out wherever they turn up. A further call takes the place of the one before, and closes its file.

    Raises:
        OSError: *file* cannot be opened; the log stays as it was.
    """
    global _sink
    sink = _Sink(sys.stdout if stream is None else stream, format, file, secrets)
    logger.remove()
    logger.add(
        sink,
        level=level,
        # The sink looks at the record. Of the text that loguru makes it needs only the stack, when there is one.
        format=lambda record: "{exception}" if record["exception"] else "",
        colorize=False,
        backtrace=False,
        diagnose=False,
    )
    _sink = sink
    for handler in [handler for handler in _ROOT.handlers if isinstance(handler, _FromStandardLibrary)]:
        _ROOT.removeHandler(handler)
    _ROOT.addHandler(_FromStandardLibrary())
    _ROOT.setLevel(_NUMBERS[level])


def enabled(level: str) -> bool:
    """Tell whether a log at *level* would be written."""
    return _ROOT.level <= _NUMBERS[level]


def log_fast(name: str, message: str, **fields: Any) -> None:
    """Log as ``logger.info`` does in the module *name*; a JSON line takes a third of the time."""
    if _sink is not None and _sink.takes_lines:
        if enabled("INFO"):
            _sink.write_line(name, message, fields)
    else:
        logger.patch(lambda said: said.update({"name": name})).info(message, **fields)


class _Sink:
    """Where loguru lays down its messages: one stream and perhaps one file."""

    def __init__(
        self, stream: TextIO | None, format: str, file: str | os.PathLike[str] | None, secrets: Iterable[str]
    ) -> None:
        self._file = open(file, "ab", buffering=0) if file is not None else None  # noqa: SIM115 - `stop` closes it
        self._write_stream = _writer(stream)
        self._write_file = _raw(self._file) if self._file else None
        is_coloured = format == "text" and _is_terminal(stream) and "NO_COLOR" not in os.environ
        self._text: Callable[[Message], bytes] | None = None
        if format == "text":
            self._text = lambda message: _text(message, is_coloured)
        self.takes_lines = self._text is None
        """True until it is taken away, if it writes nothing that only loguru knows."""
        self._second, self._until_second = -1, ""
        self._lines: list[bytes] = []
        self._lines_file: list[bytes] = []
        self._secrets = sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True)

    def write(self, message: Message) -> None:
        """
        Write one message; never raises.

        On an event loop, all that one turn of it has to say is written together: each write gives the interpreter's
        lock away, and a busy neighbour would make the loop wait for it line by line.
        """
        line = _json(message, self._now()) if self._text is None or self._write_file is not None else b""
        is_grave = message.record["level"].no >= _NUMBERS["WARNING"]
        self._put(line, line if self._text is None else self._text(message), is_grave)

    def write_line(self, name: str, message: str, fields: dict[str, Any]) -> None:
        """Write one line of JSON at INFO, as `write` does."""
        line = _dumped(
            {**_HEAD, **fields, "time": self._now(), "level": "INFO", "logger": name, "message": message}
        )
        self._put(line, line, is_grave=False)

    def _put(self, line: bytes, shown: bytes, is_grave: bool) -> None:
        if self._write_file is not None:
            self._lines_file.append(self._blotted(line))
        self._lines.append(self._blotted(shown))
        if is_grave or len(self._lines) >= LINES_MAX:
            self.write_out()
        elif len(self._lines) == 1:
            try:
                asyncio.get_running_loop().call_soon(self.write_out)
            except RuntimeError:  # no loop in this thread, nothing to wait for
                self.write_out()

    def write_out(self) -> None:
        """
        Write what was said and is not written yet.

        It must not be called flush: loguru would call a sink's flush after every line.
        """
        lines, self._lines = self._lines, []
        if lines:
            self._write_stream(b"".join(lines))
        lines, self._lines_file = self._lines_file, []
        if lines and self._write_file is not None:
            self._write_file(b"".join(lines))

    def _now(self) -> str:
        """Return the time in RFC 3339. The record has one too, but to turn it to UTC costs more than all the rest."""
        second, micros = divmod(time.time_ns() // 1000, 1_000_000)
        if second != self._second:
            self._second, self._until_second = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._until_second}.{micros:06d}Z"

    def stop(self) -> None:
        """Write the rest and close the file; loguru calls this when the sink is taken away."""
        self.takes_lines = False
        self.write_out()
        if self._file is not None:
            self._file.close()

    def _blotted(self, line: bytes) -> bytes:
        for secret in self._secrets:
            if secret in line:
                line = line.replace(secret, b"***")
        return line


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _writer(stream: TextIO | None) -> Write:
    """Return how to write to *stream*: past its buffer where it has a descriptor, so that a line that fails is gone."""
    if stream is None:
        return lambda line: None
    try:
        stream.flush()
        return _raw(FileIO(stream.fileno(), "wb", closefd=False))
    except (OSError, ValueError):  # made in memory, or closed already
        pass

    def write(line: bytes) -> None:
        try:
            stream.write(line.decode())
            stream.flush()
        except (OSError, ValueError):
            pass

    return write


def _raw(file: FileIO) -> Write:
    def write(line: bytes) -> None:
        try:
            written = file.write(line)
            # A pipe or a disk may take a part; None means that it takes nothing now and we may not wait.
            while written is not None and written < len(line):
                line = line[written:]
                written = file.write(line)
        except (OSError, ValueError):
            pass

    return write


def _json(message: Message, now: str) -> bytes:
    """Return one line of JSON; whatever cannot be JSON goes in as text."""
    record = message.record
    fields: dict[str, Any] = {
        **_HEAD,
        **record["extra"],
        "time": now,
        "level": record["level"].name,
        "logger": record["name"],
        "message": record["message"],
    }
    if message:
        fields["exception"] = str(message).rstrip("\n")
    return _dumped(fields)


def _dumped(fields: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(fields, _told, _ORJSON)
    except (TypeError, ValueError, RecursionError):  # lone surrogates, integers over 64 bits, circles
        return json.dumps({str(name): _told(value) for name, value in fields.items()}).encode("ascii") + b"\n"


def _text(message: Message, is_coloured: bool) -> bytes:
    """Return one line for a reader, and the stack below it."""
    record: Record = message.record
    level = f"{record['level'].name:<8}"
    said = str(record["message"]).translate(_VISIBLE)
    extra = "".join(
        f" {name}={_told(value)}".translate(_VISIBLE) for name, value in record["extra"].items() if value is not None
    )
    if is_coloured:
        level = f"\x1b[{_COLOURS.get(record['level'].name, '0')}m{level}\x1b[0m"
        extra = f"\x1b[2m{extra}\x1b[0m" if extra else ""
    stack = str(message).rstrip("\n").translate(_VISIBLE_BUT_NEWLINE)
    line = f"{record['time']:HH:mm:ss.SSS} {level} {record['name']}: {said}{extra}\n{stack}{stack and chr(10)}"
    return line.encode("utf-8", "backslashreplace")


def _told(value: object) -> str:
    """Return *value* as text, even when it does its worst to have none."""
    try:
        return str(value)
    except Exception:  # it is somebody else's __str__, and a log must not fail on it
        return f"<{type(value).__name__} without words>"


def _forms(secret: str) -> Iterable[bytes]:
    """Yield how *secret* may look in a line; one that is too short would blot out innocent text."""
    if len(secret) >= _SECRET_CHARACTERS_MIN:
        yield secret.encode("utf-8", "backslashreplace")
        yield json.dumps(secret, ensure_ascii=False)[1:-1].encode("utf-8", "backslashreplace")


_sink: _Sink | None = None
"""The present one; None before `setup`."""


class _FromStandardLibrary(logging.Handler):
    """Hand what the standard library's loggers say over to loguru, under their own names."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it again."""
        try:
            name, message = record.name, record.getMessage()
        except Exception:  # arguments that do not fit their message: logging's own way to say so
            self.handleError(record)
            return
        level: str | int = record.levelname if record.levelname in LEVELS else record.levelno
        patched = logger.patch(lambda said: said.update({"name": name}))
        patched.opt(exception=record.exc_info or None).log(level, message)
