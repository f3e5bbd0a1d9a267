"""
W3C Trace Context and correlation ids: who asked, and what belongs together.

A ``traceparent`` is ``00-<trace id>-<parent id>-<flags>``. A caller's is continued under a fresh parent id; every event
that follows is a child whose parent id is taken from the event's own id, so that deciding again gives the same header.
"""

from __future__ import annotations

__all__ = ["TraceContext", "child", "correlation_id", "trace_id", "traceparent"]

import re
from collections.abc import Callable

from attrs import define

_CORRELATION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}").fullmatch
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?").fullmatch

# Sampled, and random trace id (level 2). A continued trace keeps them; the other bits mean nothing yet and go out as 0.
_KNOWN_FLAGS = 0x03


@define  # not frozen: every message creates one, and a frozen class takes three times as long
class TraceContext:
    """What caused an event, for logs and traces: *correlation_id* and a valid W3C *traceparent*."""

    correlation_id: str
    traceparent: str


def correlation_id(header: str | None, fresh: Callable[[], str]) -> str:
    """Return the caller's id if it is 1 to 128 of ``A-Z a-z 0-9 . _ : -``, and a *fresh* one otherwise."""
    return header if header is not None and _CORRELATION_ID(header) else fresh()


def traceparent(header: str | None, random_bytes: Callable[[int], bytes]) -> str:
    """
    Continue the trace of *header* if it is a valid one, and begin a new, sampled one otherwise.

    A valid header keeps its trace id and its flags. A version to come is read as the specification asks: the four
    known fields, and after them nothing or a dash and what only that version understands. What comes out is
    version 00.
    """
    found = _TRACEPARENT(header) if header is not None else None
    if found:
        parent = _not_zero(random_bytes(8).hex())
        version, trace, caller, flags, rest = found.groups()
        if version != "ff" and trace.strip("0") and caller.strip("0") and (version != "00" or rest is None):
            return f"00-{trace}-{parent}-{int(flags, 16) & _KNOWN_FLAGS:02x}"
    digits = random_bytes(24).hex()
    return f"00-{_not_zero(digits[:32])}-{_not_zero(digits[32:])}-01"


def child(traceparent: str, event_id: str) -> str:
    """
    Return the header that an event travels with: the trace of its cause, and a parent id that follows from *event_id*.

    The parent id is the last 16 digits of a UUID that `bus.ids.derived_id` gave, which are never all zero. *traceparent*
    must be one that this module gave.
    """
    return f"{traceparent[:36]}{event_id[19:23]}{event_id[24:]}{traceparent[52:]}"


def trace_id(traceparent: str) -> str:
    """Return the 32 hexadecimal digits that name the trace."""
    return traceparent[3:35]


def _not_zero(digits: str) -> str:
    """Return *digits*, or the next best where all are zero: the specification takes that for no id at all."""
    return digits if digits.strip("0") else f"{digits[:-1]}1"
