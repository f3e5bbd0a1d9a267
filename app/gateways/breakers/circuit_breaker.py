"""
A circuit breaker: it stops calls to a provider that fails, and later lets probes test whether the provider has recovered.

    CLOSED --too many calls failed lately--> OPEN --open period elapsed--> HALF_OPEN
       ^                                      ^                               |
       |                                      \\----------- a probe failed ----/
       \\------------------------------------------ all probes succeeded ------/

It is a pure state machine: it never waits, and it reads the time from the clock that it is given. A caller acquires a
`Permit` before each call and returns it together with the outcome. A permit from an earlier state has no effect.
"""

from __future__ import annotations

__all__ = ["BreakerOpen", "BreakerState", "CircuitBreaker", "Permit"]

from collections import deque
from collections.abc import Callable
from enum import IntEnum

from attrs import define, field


class BreakerState(IntEnum):
    """The values of the metric ``circuit_breaker_state``."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class BreakerOpen(Exception):
    """No call is permitted now; try again after *retry_after_seconds*."""

    def __init__(self, retry_after_seconds: float) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"open for another {retry_after_seconds:.1f} s")


@define(eq=False)  # not frozen: each call takes one, and a frozen class takes three times as long to make
class Permit:
    """Permission to make one call; the caller returns it to the `CircuitBreaker` exactly once."""

    generation: int


@define(eq=False)
class CircuitBreaker:
    """
    Permit calls, depending on the outcome of earlier ones.

    The breaker considers the last *window* calls that ended within *window_seconds*. It opens when they are *calls_min* or
    more and a share of at least *failure_share* failed; and at once when the provider requests a pause. It stays open
    for the time that the provider requested, or else for *open_seconds*. Then it permits exactly *probes* calls, however
    many are requested; it closes when all of them have succeeded, and opens again when one fails.

    The caller decides what is a failure: a proper rejection by the provider counts as a success, and a call that the
    caller cancelled counts as neither.
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
    """Counts the state changes; a permit of an earlier generation is ignored."""
    _outcomes: deque[tuple[float, bool]] = field(init=False)
    _failures: int = field(default=0, init=False)
    _listeners: list[Callable[[BreakerState], None]] = field(init=False)
    _open_until: float = field(default=0.0, init=False)
    _probes_in_flight: int = field(default=0, init=False)
    _probes_succeeded: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._outcomes = deque()
        self._listeners = [self.on_change]

    @property
    def state(self) -> BreakerState:
        """The state after the last call. An open breaker half-opens on the first `acquire` after its open period."""
        return self._state

    @property
    def wait_seconds(self) -> float:
        """How long `acquire` would fail; 0 if it would return a permit now."""
        if self._state is BreakerState.OPEN:
            return max(0.0, self._open_until - self.monotonic())
        if self._state is BreakerState.HALF_OPEN and self._probes_in_flight + self._probes_succeeded >= self.probes:
            return min(1.0, self.open_seconds)
        return 0.0

    def add_listener(self, listener: Callable[[BreakerState], None]) -> None:
        """Call *listener* with the new state after each state change."""
        self._listeners.append(listener)

    def check(self) -> None:
        """
        Return if `acquire` would return a permit.

        Raises:
            BreakerOpen: It would not.
        """
        wait_seconds = self.wait_seconds
        if wait_seconds > 0:
            raise BreakerOpen(wait_seconds)

    def acquire(self) -> Permit:
        """
        Return a permit for one call.

        Raises:
            BreakerOpen: The breaker is open, or it is half-open and all probes are in flight.
        """
        self.check()
        if self._state is BreakerState.OPEN:
            self._change_state(BreakerState.HALF_OPEN)
        if self._state is BreakerState.HALF_OPEN:
            self._probes_in_flight += 1
        return Permit(self._generation)

    def succeeded(self, permit: Permit) -> None:
        """Record that the provider responded to the call, possibly with a rejection."""
        if permit.generation != self._generation:
            return
        if self._state is BreakerState.HALF_OPEN:
            self._probes_in_flight -= 1
            self._probes_succeeded += 1
            if self._probes_succeeded >= self.probes:
                self._change_state(BreakerState.CLOSED)
        else:
            self._record(is_success=True)

    def failed(
        self, permit: Permit, retry_after_seconds: float | None = None, *, opens_at_once: bool = True
    ) -> None:
        """
        Record that the call failed; *retry_after_seconds* is the pause that the provider requested, if any.

        A pause opens the breaker at once, unless *opens_at_once* is false: then only a share of failures does.
        """
        if permit.generation != self._generation:
            return
        self._record(is_success=False)
        calls = len(self._outcomes)
        is_over_limit = calls >= self.calls_min and self._failures >= self.failure_share * calls
        is_asked_to_pause = opens_at_once and retry_after_seconds is not None
        if self._state is BreakerState.HALF_OPEN or is_over_limit or is_asked_to_pause:
            self._open_until = self.monotonic() + (retry_after_seconds or self.open_seconds)
            self._change_state(BreakerState.OPEN)

    def cancelled(self, permit: Permit) -> None:
        """Record that the caller cancelled the call, which is no evidence about the provider."""
        if permit.generation == self._generation and self._state is BreakerState.HALF_OPEN:
            self._probes_in_flight -= 1

    def _record(self, *, is_success: bool) -> None:
        """Add the outcome of a call, and drop those that are outside the window."""
        now = self.monotonic()
        outcomes = self._outcomes
        outcomes.append((now, is_success))
        self._failures += not is_success
        while len(outcomes) > self.window or outcomes[0][0] < now - self.window_seconds:
            self._failures -= not outcomes.popleft()[1]

    def _change_state(self, state: BreakerState) -> None:
        self._state = state
        self._generation += 1
        self._outcomes.clear()
        self._failures = self._probes_in_flight = self._probes_succeeded = 0
        for listener in self._listeners:
            listener(state)
