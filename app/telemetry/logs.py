"""
One log for the whole program: loguru is the interface, a `LogSink` writes JSON lines or text.

    from loguru import logger

    logger.info("order finished", order_id=order_id, status=status, correlation_id=correlation_id)

The message is a constant; values that vary are keywords, which become members of the line. (loguru formats the message
with them, so the message must contain no braces.) The keywords are built even if the level is off: on hot paths ask
`enabled` first. Lines that are written for every order go through `log_fast`, which bypasses loguru.

Records of the standard library's loggers (aiohttp, alembic, sqlalchemy, asyncio) are written here, too. Exceptions are
shown with their stack and never with the values of variables. Logging never raises and never waits: threads write the
lines (`app.telemetry.log_writer`), and a line that cannot be written is dropped and counted.
"""

from __future__ import annotations

__all__ = [
    "FORMATS",
    "LEVELS",
    "dropped",
    "enabled",
    "log_fast",
    "print_line",
    "redact",
    "reopen",
    "setup",
    "wait_until_written",
]

import logging
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from loguru import logger

from app.telemetry.log_sink import LogSink

FORMATS = ("json", "text")
LEVELS = ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

_ROOT = logging.getLogger()
_NUMBERS = {level: logger.level(level).no for level in LEVELS}

_sink: LogSink | None = None
"""The sink in use; None before `setup`."""


def setup(
    level: str,
    format: str,
    file: str | os.PathLike[str] | None = None,
    stream: TextIO | None = None,
    secrets: Iterable[str] = (),
) -> None:
    """
    Write every record of at least *level* to *stream* in *format*, and to *file* as JSON lines.

    *level* is one of `LEVELS`, *format* one of `FORMATS`, *stream* stdout by default. Each occurrence of a text in
    *secrets* is replaced by ``***``. A further call replaces the setup before and closes its file.

    Raises:
        OSError: *file* cannot be opened; the log stays as it was.
    """
    global _sink
    sink = LogSink(sys.stdout if stream is None else stream, format, file, secrets)
    logger.remove()
    logger.add(
        sink,
        level=level,
        # The sink reads the record. Of the text that loguru formats it needs only the stack, if there is one.
        format=lambda record: "{exception}" if record["exception"] else "",
        colorize=False,
        backtrace=False,
        diagnose=False,
    )
    _sink = sink
    for handler in [handler for handler in _ROOT.handlers if isinstance(handler, _LoguruHandler)]:
        _ROOT.removeHandler(handler)
    _ROOT.addHandler(_LoguruHandler())
    _ROOT.setLevel(_NUMBERS[level])


def enabled(level: str) -> bool:
    """Return whether a record at *level* would be written."""
    return _ROOT.level <= _NUMBERS[level]


def log_fast(name: str, message: str, **fields: Any) -> None:
    """Log as ``logger.info`` does in the module *name*; a JSON line takes a third of the time."""
    if _sink is not None and _sink.accepts_json:
        if enabled("INFO"):
            _sink.write_json(name, message, fields)
    else:
        logger.patch(lambda record: record.update({"name": name})).info(message, **fields)


def print_line(text: str) -> None:
    """Write *text* as it is to the stream of the log, after the lines that were logged before; to stdout before `setup`."""
    if _sink is None:
        print(text, flush=True)
    else:
        _sink.write_plain(text)


def reopen() -> None:
    """Reopen the log file, as after its rotation; without a file this does nothing."""
    if _sink is not None:
        _sink.reopen()


def redact(secrets: Iterable[str]) -> None:
    """Replace each occurrence of a text in *secrets* by ``***``, too."""
    if _sink is not None:
        _sink.redact(secrets)


def dropped() -> int:
    """Return how many lines were dropped since `setup`, on the stream and in the file together."""
    return 0 if _sink is None else _sink.dropped


def wait_until_written(seconds: float = 1.0) -> bool:
    """Wait until every line so far is written, for up to *seconds* for each destination; return whether it is."""
    return _sink is None or _sink.wait_until_written(seconds)


class _LoguruHandler(logging.Handler):
    """Passes records of the standard library's loggers to loguru, under the loggers' own names."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log *record* through loguru."""
        try:
            name, message = record.name, record.getMessage()
        except Exception:  # the arguments do not fit the message: report it as the standard library does
            self.handleError(record)
            return
        level: str | int = record.levelname if record.levelname in LEVELS else record.levelno
        patched = logger.patch(lambda target: target.update({"name": name}))
        patched.opt(exception=record.exc_info or None).log(level, message)
