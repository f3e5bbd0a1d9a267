"""
Read, continue and create W3C Trace Context headers and correlation ids.

A ``traceparent`` is ``00-<trace id>-<parent id>-<flags>``. A client's header is continued with a new parent id. The header
of each event that follows has a parent id from the event's own id, so that deciding again gives the same header.
"""

from __future__ import annotations

__all__ = ["TRACEPARENT", "TraceContext", "child", "correlation_id", "trace_id", "traceparent"]

import re
from collections.abc import Callable

from attrs import define

TRACEPARENT = "traceparent"
"""The name of the header."""

_CORRELATION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}").fullmatch
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?").fullmatch

# "Sampled" and "random trace id" (level 2). A continued trace keeps them; the other bits are reserved and sent as 0.
_KNOWN_FLAGS = 0x03


@define  # not frozen: every message creates one, and a frozen class takes three times as long
class TraceContext:
    """The trace that an event belongs to: its *correlation_id* and a valid W3C *traceparent*."""

    correlation_id: str
    traceparent: str


def correlation_id(header: str | None, new_id: Callable[[], str]) -> str:
    """Return the client's id if it is 1 to 128 of ``A-Z a-z 0-9 . _ : -``, otherwise the result of *new_id*."""
    return header if header is not None and _CORRELATION_ID(header) else new_id()


def traceparent(header: str | None, random_bytes: Callable[[int], bytes]) -> str:
    """
    Return a header that continues the trace of *header* if that is valid, and begins a new, sampled trace otherwise.

    A valid header keeps its trace id and its flags. A future version is read as the specification requires: the four
    known fields, followed by nothing or by a dash and fields of that version. The result is always version 00.

    Source: W3C Trace Context, section 3.2.
    """
    found = _TRACEPARENT(header) if header is not None else None
    if found:
        new_parent_id = _not_zero(random_bytes(8).hex())
        version, trace, parent_id, flags, rest = found.groups()
        if version != "ff" and trace.strip("0") and parent_id.strip("0") and (version != "00" or rest is None):
            return f"00-{trace}-{new_parent_id}-{int(flags, 16) & _KNOWN_FLAGS:02x}"
    digits = random_bytes(24).hex()
    return f"00-{_not_zero(digits[:32])}-{_not_zero(digits[32:])}-01"


def child(traceparent: str, event_id: str) -> str:
    """
    Return the header of an event: the trace of its cause in *traceparent*, and a parent id that follows from *event_id*.

    The parent id is the last 16 digits of the UUID *event_id*, which must come from `bus.ids.derived_id`: they are never
    all zero. *traceparent* must come from this module.
    """
    return f"{traceparent[:36]}{event_id[19:23]}{event_id[24:]}{traceparent[52:]}"


def trace_id(traceparent: str) -> str:
    """Return the 32 hexadecimal digits of the trace id."""
    return traceparent[3:35]


def _not_zero(digits: str) -> str:
    """Return *digits*, with a last digit of 1 if all are zero: the specification forbids such an id."""
    return digits if digits.strip("0") else f"{digits[:-1]}1"
