"""
Limit the rate of calls to a provider that answers 429: fewer calls after each 429, gradually more while they succeed.

Without a limit, calls pass at once. A throttled call halves the rate, at most once in `STEP_SECONDS`, because the answers to
calls that were already in flight are no evidence about the new rate. Each second in which calls succeed adds `STEP` calls a
second (additive increase, multiplicative decrease, as TCP does it); the limit is lifted once the rate is back at twice what
it was at the first 429.
"""

from __future__ import annotations

__all__ = ["RATE_MIN", "STEP", "STEP_SECONDS", "CallPace"]

from collections import deque
from collections.abc import Callable

from attrs import define, field

STEP_SECONDS = 1.0
STEP = 2.0
RATE_MIN = 1.0
"""The lowest rate in calls a second, however often the provider answers 429."""

_WINDOW_SECONDS = 5.0
"""The rate of calls is measured over this many seconds when the first limit is set."""


@define(eq=False)
class CallPace:
    """
    Compute when the next call may be made.

    It is a pure state machine: it never waits, and it reads the time from the clock that it is given.
    """

    monotonic: Callable[[], float]
    rate: float | None = field(default=None, init=False)
    """Calls a second; None without a limit."""
    _ceiling: float = field(default=0.0, init=False)
    _changed_at: float = field(default=0.0, init=False)
    _next_at: float = field(default=0.0, init=False)
    _ended_at: deque[float] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._ended_at = deque(maxlen=1_000)

    def reserve(self) -> float:
        """Reserve the next call; return in how many seconds it may be made."""
        if self.rate is None:
            return 0.0
        now = self.monotonic()
        at = max(self._next_at, now)
        self._next_at = at + 1.0 / self.rate
        return at - now

    def throttled(self) -> None:
        """Halve the rate: the provider has refused a call because there were too many."""
        now = self.monotonic()
        if self.rate is not None and now < self._changed_at + STEP_SECONDS:
            return
        if self.rate is None:
            self.rate = self._measured(now)
            self._ceiling = 2.0 * self.rate
            self._next_at = now
        self.rate = max(RATE_MIN, self.rate / 2.0)
        self._changed_at = now

    def succeeded(self) -> None:
        """Raise the rate if it has not changed for `STEP_SECONDS`: the provider has accepted a call."""
        now = self.monotonic()
        self._ended_at.append(now)
        if self.rate is None or now < self._changed_at + STEP_SECONDS:
            return
        self.rate += STEP
        self._changed_at = now
        if self.rate >= self._ceiling:
            self.rate = None

    def _measured(self, now: float) -> float:
        """Return how many calls a second succeeded lately, at least `RATE_MIN`."""
        recent = [at for at in self._ended_at if at > now - _WINDOW_SECONDS]
        if not recent:
            return RATE_MIN
        return max(RATE_MIN, len(recent) / max(now - recent[0], STEP_SECONDS))
