"""Format a log record as a JSON line for programs or as a text line for readers."""

from __future__ import annotations

__all__ = ["json_line", "text_line", "text_of"]

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from loguru import Message, Record

_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z
_FIRST_MEMBERS = dict.fromkeys(("time", "level", "logger", "message"))
_COLOURS = {"TRACE": "2", "DEBUG": "36", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}

# Control characters, which could move the cursor of a terminal or end the line, are escaped.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_STACK_ESCAPES = {code: text for code, text in _ESCAPES.items() if code not in (9, 10)}


def json_line(
    time: str, level: str, logger: str | None, message: str, extra: Mapping[str, Any], stack: str = ""
) -> bytes:
    """
    Return one line of JSON.

    The first four arguments are its first members, and no member of *extra* replaces them. A value that JSON has no form
    for is written as text.
    """
    members: dict[str, Any] = {
        **_FIRST_MEMBERS, **extra, "time": time, "level": level, "logger": logger, "message": message
    }  # fmt: skip
    if stack:
        members["exception"] = stack
    try:
        return orjson.dumps(members, _as_text, _OPTIONS)
    except (TypeError, ValueError, RecursionError):  # lone surrogates, integers over 64 bits, circular references
        return json.dumps({str(name): _as_text(value) for name, value in members.items()}).encode("ascii") + b"\n"


def text_line(message: Message, is_coloured: bool) -> bytes:
    """Return one line of text, and the stack in the lines below it."""
    record: Record = message.record
    return text_of(
        f"{record['time']:HH:mm:ss.SSS}",
        record["level"].name,
        record["name"],
        record["message"],
        record["extra"],
        str(message).rstrip("\n"),
        is_coloured=is_coloured,
    )


def text_of(
    time: str,
    level: str,
    logger: str | None,
    message: str,
    extra: Mapping[str, Any],
    stack: str = "",
    *,
    is_coloured: bool = False,
) -> bytes:
    """Return one line of text with the parts of `json_line`, and *stack* in the lines below it."""
    shown = f"{level:<8}"
    fields = "".join(
        f" {name}={_as_text(value)}".translate(_ESCAPES) for name, value in extra.items() if value is not None
    )
    if is_coloured:
        shown = f"\x1b[{_COLOURS.get(level, '0')}m{shown}\x1b[0m"
        fields = f"\x1b[2m{fields}\x1b[0m" if fields else ""
    below = stack.translate(_STACK_ESCAPES)
    line = f"{time} {shown} {logger}: {str(message).translate(_ESCAPES)}{fields}\n{below}{below and chr(10)}"
    return line.encode("utf-8", "backslashreplace")


def _as_text(value: object) -> str:
    """Return *value* as text, even if its ``__str__`` fails: that may be foreign code, and logging must not fail."""
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} without text>"
