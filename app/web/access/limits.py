"""
Limits for one caller, so that it cannot use up what all callers share: streams, requests, and tries of wrong keys.

A caller is an API key; without keys, an address. A right key is never refused because of wrong ones from the same address:
many clients may share it, behind a proxy.
"""

from __future__ import annotations

__all__ = ["STREAMS_PER_KEY_MAX", "WRONG_KEYS_MAX", "LimitLog", "RateLimit"]

from collections.abc import Callable
from time import monotonic
from typing import Any

from loguru import logger

STREAMS_PER_KEY_MAX = 500
"""Streams of one key: half of all that may be open."""

WRONG_KEYS_MAX = 30
"""Wrong keys from one address within a minute; further ones are answered with 429, and the connection is closed."""

_CALLERS_MAX = 10_000
_REPORT_AGAIN_SECONDS = 60.0


class LimitLog:
    """Logs that a limit is reached, once a minute for each."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._reported: dict[str, float] = {}

    def report(self, what: str, limit: int, **fields: Any) -> None:
        """Log that *what* has reached *limit*."""
        now = self._now()
        if now - self._reported.get(what, -_REPORT_AGAIN_SECONDS) >= _REPORT_AGAIN_SECONDS:
            self._reported[what] = now
            logger.warning(f"limit reached: {what}", limit=limit, **fields)


class RateLimit:
    """
    Counts what callers do in windows of *seconds*, and refuses more than *count* in one of them.

    That is logged as *what*, with the caller, once a minute: many callers at once must not become as many lines.
    """

    def __init__(self, what: str, count: int, seconds: float, now: Callable[[], float] = monotonic) -> None:
        self._what = what
        self._count = count
        self._seconds = seconds
        self._now = now
        self._log = LimitLog(now)
        self._ends_at = 0.0
        self._counts: dict[str, int] = {}

    def take(self, caller: str) -> float:
        """Count one use of *caller*; return 0, or after how many seconds the caller may try again."""
        now = self._now()
        if now >= self._ends_at:
            self._counts.clear()
            self._ends_at = now + self._seconds
        if caller not in self._counts and len(self._counts) >= _CALLERS_MAX:
            caller = "others"
        count = self._counts[caller] = self._counts.get(caller, 0) + 1
        if count <= self._count:
            return 0.0
        self._log.report(self._what, self._count, caller=caller, seconds=self._seconds)
        return self._ends_at - now
