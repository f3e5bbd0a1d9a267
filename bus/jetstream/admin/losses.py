"""
Notice that a stream has lost messages before their time.

A stream that is as planned gives up a message only when it is as old as `AGE_MAX_SECONDS`. One that was purged, deleted and
created again, or had a limit lowered for a while, has lost messages that perhaps no consumer had received; afterwards it
is as planned, and nothing else shows the loss.
"""

from __future__ import annotations

__all__ = ["SHOWN_SECONDS", "LossDetector"]

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from attrs import frozen

from bus.jetstream.admin.configs import AGE_MAX_SECONDS
from bus.jetstream.admin.server_config import ServerConfig

SHOWN_SECONDS = 3_600.0
"""How long a loss is shown: it cannot be seen from the server that the events were published again."""

_TOLERANCE_SECONDS = 300.0
_ADVICE = "what no consumer has received is lost with them; publish the events again (`python -m app republish --since 2d`)"

_log = logging.getLogger(__name__)


@frozen
class _Seen:
    """A stream at one look."""

    created: str
    messages: int
    first_sequence: int
    last_sequence: int
    deleted: int
    first_at: str
    last_at: str


class LossDetector:
    """Compares what the server reports about each stream with what it reported before; *monotonic* is the clock."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._seen: dict[str, _Seen] = {}
        self._losses: dict[str, float] = {}
        """Until when each line is shown."""

    @property
    def losses(self) -> Sequence[str]:
        """One line for each loss of the last hour."""
        now = self._monotonic()
        return [line for line, until in self._losses.items() if now < until]

    def observe(self, label: str, found: ServerConfig) -> None:
        """Take note of the stream *label* as the server describes it now; log a loss at ERROR, once."""
        state = found.info.get("state")
        if not state:
            return
        now = _Seen(
            created=str(found.info.get("created")),
            messages=state.get("messages") or 0,
            first_sequence=state.get("first_seq") or 0,
            last_sequence=state.get("last_seq") or 0,
            deleted=state.get("num_deleted") or 0,
            first_at=str(state.get("first_ts")),
            last_at=str(state.get("last_ts")),
        )
        before, self._seen[label] = self._seen.get(label), now
        if before is not None and (what := _loss(before, now, str(found.info.get("ts") or ""))):
            _log.error("%s: %s; %s", label, what, _ADVICE)
            self._losses[f"{label} {what}"] = self._monotonic() + SHOWN_SECONDS


def _loss(before: _Seen, now: _Seen, asked_at: str) -> str:
    """Return what has happened to messages that were there *before*; empty if nothing has, but for those that were old."""
    if not before.messages:
        return ""
    if now.created != before.created or now.last_sequence < before.last_sequence:
        return "was deleted and created again"
    if now.deleted > before.deleted:
        return "had messages deleted"
    if now.first_sequence > before.first_sequence:
        # Of those that are gone, the time of the first is known, and of the last if nothing is left.
        gone = (before.first_at, before.last_at) if not now.messages else (before.first_at,)
        if any(_age_seconds(each, asked_at) < AGE_MAX_SECONDS - _TOLERANCE_SECONDS for each in gone):
            return f"was purged, or had a limit lowered: messages before {now.first_sequence} are gone"
    return ""


def _age_seconds(stored_at: str, asked_at: str) -> float:
    """Return the age by the server's own clock; an old server does not report its time, and no message counts as young then."""
    try:
        return (datetime.fromisoformat(asked_at) - datetime.fromisoformat(stored_at)).total_seconds()
    except ValueError:
        return AGE_MAX_SECONDS
