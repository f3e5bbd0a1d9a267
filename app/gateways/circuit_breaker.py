"""
The circuit breaker: a provider in trouble is left alone, and then asked by one.

    CLOSED --too many calls failed lately--> OPEN --its time is over--> HALF_OPEN
       ^                                      ^                            |
       |                                      \\---------- a probe failed --/
       \\-------------------------------------------- all probes succeeded -/

A pure state machine: it waits for nobody and asks the clock it was given. Whoever wants to call asks for a `Permit` first
and brings it back with what happened. A pass that was given out in an earlier state changes nothing any more.
"""

from __future__ import annotations

__all__ = ["BreakerOpen", "BreakerState", "CircuitBreaker", "Permit"]

from collections import deque
from collections.abc import Callable
from enum import IntEnum

from attrs import define, field, frozen


class BreakerState(IntEnum):
    """The values of the metric ``circuit_breaker_state``."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class BreakerOpen(Exception):
    """Nobody may call now; it is worth asking again after *retry_after_seconds*."""

    def __init__(self, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"open for another {retry_after_seconds:.1f} s")


@frozen(eq=False)
class Permit:
    """Leave to make one call; bring it back to `CircuitBreaker` exactly once."""

    generation: int


@define(eq=False)
class CircuitBreaker:
    """
    Decide who may call.

    It looks at the last *window* calls, as far as they ended within *window_seconds*. When they are *calls_min* or more
    and a share of *failure_share* of them failed, it opens, for *open_seconds* or for as long as the provider asked;
    what a provider asks opens it at once. Then exactly *probes* calls may pass, however many want to; if all of them
    succeed it closes. What counts as a failure is the caller's to say: a refusal in due form is none, and a call that
    was cancelled is neither.
    """

    monotonic: Callable[[], float]
    window: int = 50
    window_seconds: float = 30.0
    calls_min: int = 20
    failure_share: float = 0.8
    open_seconds: float = 5.0
    probes: int = 1
    on_change: Callable[[BreakerState], None] = lambda state: None
    _state: BreakerState = field(default=BreakerState.CLOSED, init=False)
    _generation: int = field(default=0, init=False)
    _outcomes: deque[tuple[float, bool]] = field(init=False)
    _failures: int = field(default=0, init=False)
    _followers: list[Callable[[BreakerState], None]] = field(init=False)
    _open_until: float = field(default=0.0, init=False)
    _probes_out: int = field(default=0, init=False)
    _probes_good: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._outcomes = deque()
        self._followers = [self.on_change]

    @property
    def state(self) -> BreakerState:
        """The state as of the last call; an open breaker whose time is over half-opens when somebody asks."""
        return self._state

    @property
    def wait_seconds(self) -> float:
        """How long it is not worth asking; 0 when somebody may call now."""
        if self._state is BreakerState.OPEN:
            return max(0.0, self._open_until - self.monotonic())
        if self._state is BreakerState.HALF_OPEN and self._probes_out + self._probes_good >= self.probes:
            return min(1.0, self.open_seconds)
        return 0.0

    def add_listener(self, follower: Callable[[BreakerState], None]) -> None:
        """Call *follower* after each change, too."""
        self._followers.append(follower)

    def acquire(self) -> Permit:
        """
        Return leave to call.

        Raises:
            BreakerOpen: Not now. Half-open, all probes are out: ask again in a moment.
        """
        wait_seconds = self.wait_seconds
        if wait_seconds > 0:
            raise BreakerOpen(wait_seconds)
        if self._state is BreakerState.OPEN:
            self._become(BreakerState.HALF_OPEN)
        if self._state is BreakerState.HALF_OPEN:
            self._probes_out += 1
        return Permit(self._generation)

    def succeeded(self, leave: Permit) -> None:
        """The call was answered, be it with a no."""
        if leave.generation != self._generation:
            return
        if self._state is BreakerState.HALF_OPEN:
            self._probes_out -= 1
            self._probes_good += 1
            if self._probes_good >= self.probes:
                self._become(BreakerState.CLOSED)
        else:
            self._note(True)

    def failed(self, leave: Permit, retry_after_seconds: float | None = None) -> None:
        """The call was not answered; the provider may have said when to come again."""
        if leave.generation != self._generation:
            return
        self._note(False)
        calls = len(self._outcomes)
        is_too_bad = calls >= self.calls_min and self._failures >= self.failure_share * calls
        if self._state is BreakerState.HALF_OPEN or is_too_bad or retry_after_seconds is not None:
            self._open_until = self.monotonic() + (retry_after_seconds or self.open_seconds)
            self._become(BreakerState.OPEN)

    def cancelled(self, leave: Permit) -> None:
        """The call was given up by us; it says nothing about the provider."""
        if leave.generation == self._generation and self._state is BreakerState.HALF_OPEN:
            self._probes_out -= 1

    def _note(self, is_good: bool) -> None:
        """Remember how a call ended, and forget what is too long ago to count."""
        now = self.monotonic()
        outcomes = self._outcomes
        outcomes.append((now, is_good))
        self._failures += not is_good
        while len(outcomes) > self.window or outcomes[0][0] < now - self.window_seconds:
            self._failures -= not outcomes.popleft()[1]

    def _become(self, state: BreakerState) -> None:
        self._state = state
        self._generation += 1
        self._outcomes.clear()
        self._failures = self._probes_out = self._probes_good = 0
        for follower in self._followers:
            follower(state)
