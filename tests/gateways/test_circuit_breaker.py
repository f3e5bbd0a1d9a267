"""The circuit breaker, compared with a model that is too simple to be wrong."""

from __future__ import annotations

from contextlib import suppress

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.gateways.breakers.circuit_breaker import BreakerOpen, BreakerState, CircuitBreaker, Permit
from tests.examples import examples

WINDOW, CALLS_MIN, WINDOW_SECONDS, OPEN_SECONDS, PROBES = 6, 4, 20.0, 5.0, 2


@define
class ManualTime:
    """A monotonic time that the test sets."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@define
class Model:
    """The same rules without any optimisation: it keeps every outcome, and counts them again each time."""

    state: str = "closed"
    epoch: int = 0
    results: list[tuple[float, bool]] = field(factory=list)
    until: float = 0.0
    out: int = 0
    good: int = 0

    def acquire(self, now: float) -> int | None:
        if self.state == "open" and now >= self.until:
            self.change_state("half-open")
        if self.state == "open" or (self.state == "half-open" and self.out + self.good >= PROBES):
            return None
        self.out += self.state == "half-open"
        return self.epoch

    def release(self, epoch: int, result: bool | None, now: float, asked: float | None) -> None:
        if epoch != self.epoch:
            return
        if self.state == "half-open":
            self.out -= 1
            self.good += result is True
            if result is False:
                self.open(now, asked)
            elif self.good >= PROBES:
                self.change_state("closed")
        elif self.state == "closed" and result is not None:
            self.results.append((now, result))
            recent = [good for at, good in self.results[-WINDOW:] if at >= now - WINDOW_SECONDS]
            bad = recent.count(False)
            if not result and (asked is not None or (len(recent) >= CALLS_MIN and 2 * bad >= len(recent))):
                self.open(now, asked)

    def open(self, now: float, asked: float | None) -> None:
        self.until = now + (asked or OPEN_SECONDS)
        self.change_state("open")

    def change_state(self, state: str) -> None:
        self.state, self.results, self.out, self.good = state, [], 0, 0
        self.epoch += 1


class BreakerComparison(RuleBasedStateMachine):
    """Whatever the calls, their outcomes and their times: the breaker and the model agree."""

    def __init__(self) -> None:
        super().__init__()
        self.time = ManualTime()
        self.changes: list[BreakerState] = []
        self.breaker = CircuitBreaker(
            self.time,
            window=WINDOW,
            window_seconds=WINDOW_SECONDS,
            calls_min=CALLS_MIN,
            failure_share=0.5,
            open_seconds=OPEN_SECONDS,
            probes=PROBES,
            on_change=self.changes.append,
        )
        self.model = Model()
        self.permits: list[tuple[Permit, int]] = []

    @rule()
    def acquire(self) -> None:
        is_permitted = self.breaker.wait_seconds == 0
        expected = self.model.acquire(self.time.now)
        assert is_permitted == (expected is not None)
        if expected is None:
            with pytest.raises(BreakerOpen) as caught:
                self.breaker.acquire()
            assert caught.value.retry_after_seconds > 0
        else:
            self.permits.append((self.breaker.acquire(), expected))

    @precondition(lambda self: self.permits)
    @rule(index=st.integers(0, 99), result=st.sampled_from([True, False, False, None]), asked=st.sampled_from([None, None, 0.5, 30.0]))
    def release(self, index: int, result: bool | None, asked: float | None) -> None:
        permit, epoch = self.permits.pop(index % len(self.permits))
        self.model.release(epoch, result, self.time.now, asked)
        if result is None:
            self.breaker.cancelled(permit)
        elif result:
            self.breaker.succeeded(permit)
        else:
            self.breaker.failed(permit, asked)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 9.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.time.now += seconds

    @invariant()
    def agree(self) -> None:
        assert self.breaker.state.name.lower().replace("_", "-") == self.model.state
        assert self.changes == [] or self.changes[-1] is self.breaker.state


BreakerComparison.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=40, deadline=None)
TestBreakerComparison = BreakerComparison.TestCase


def open_breaker(time: ManualTime) -> CircuitBreaker:
    """Return a breaker that has just opened."""
    breaker = CircuitBreaker(time, window=WINDOW, calls_min=CALLS_MIN, failure_share=0.5, open_seconds=OPEN_SECONDS)
    for _ in range(CALLS_MIN):
        breaker.failed(breaker.acquire())
    assert breaker.state is BreakerState.OPEN
    return breaker


def acquire_up_to(breaker: CircuitBreaker, times: int) -> list[Permit]:
    """Return the permits that *times* attempts get."""
    permits = []
    for _ in range(times):
        with suppress(BreakerOpen):
            permits.append(breaker.acquire())
    return permits


def test_an_open_breaker_permits_no_call_and_a_half_open_one_exactly_one_of_fifty() -> None:
    """A failing provider receives one probe, and only after the open period."""
    time = ManualTime()
    breaker = open_breaker(time)
    assert acquire_up_to(breaker, 50) == []
    time.now += OPEN_SECONDS
    [probe] = acquire_up_to(breaker, 50)
    assert breaker.state is BreakerState.HALF_OPEN
    breaker.succeeded(probe)
    assert (breaker.state, len(acquire_up_to(breaker, 50))) == (BreakerState.CLOSED, 50)


def test_a_failed_probe_opens_the_breaker_for_another_full_period() -> None:
    """After that period it permits one probe again."""
    time = ManualTime()
    breaker = open_breaker(time)
    time.now += OPEN_SECONDS
    breaker.failed(breaker.acquire())
    time.now += OPEN_SECONDS - 0.01
    assert acquire_up_to(breaker, 50) == []
    time.now += 0.01
    assert len(acquire_up_to(breaker, 50)) == 1


def test_after_a_cancelled_probe_another_probe_is_permitted() -> None:
    """A call that its caller cancelled is no evidence about the provider, and does not block the next probe."""
    time = ManualTime()
    breaker = open_breaker(time)
    time.now += OPEN_SECONDS
    breaker.cancelled(breaker.acquire())
    assert breaker.state is BreakerState.HALF_OPEN
    assert len(acquire_up_to(breaker, 50)) == 1


def test_the_outcome_of_a_call_from_an_earlier_state_changes_nothing() -> None:
    """A call that began while the breaker was closed does not decide about the probe."""
    time = ManualTime()
    breaker = CircuitBreaker(time, window=WINDOW, calls_min=CALLS_MIN, failure_share=0.5, open_seconds=OPEN_SECONDS)
    earlier = acquire_up_to(breaker, 3)
    for _ in range(CALLS_MIN):
        breaker.failed(breaker.acquire())
    time.now += OPEN_SECONDS
    [probe] = acquire_up_to(breaker, 1)
    breaker.succeeded(earlier[0])
    breaker.failed(earlier[1], 1000.0)
    breaker.cancelled(earlier[2])
    assert (breaker.state, acquire_up_to(breaker, 50)) == (BreakerState.HALF_OPEN, [])
    breaker.succeeded(probe)
    assert breaker.state is BreakerState.CLOSED


def test_the_breaker_stays_open_for_as_long_as_retry_after_says() -> None:
    """One Retry-After opens it at once."""
    time = ManualTime()
    breaker = CircuitBreaker(time)
    breaker.failed(breaker.acquire(), 42.0)
    with pytest.raises(BreakerOpen) as caught:
        breaker.acquire()
    assert caught.value.retry_after_seconds == pytest.approx(42.0)
    time.now += 41.9
    assert acquire_up_to(breaker, 5) == []
    time.now += 0.1
    assert len(acquire_up_to(breaker, 5)) == 1


def test_a_few_failures_among_many_calls_leave_the_breaker_closed() -> None:
    """It opens only for a share of the last calls, and only if there are enough of them."""
    breaker = CircuitBreaker(ManualTime(), window=10, calls_min=5)
    for n in range(100):
        permit = breaker.acquire()
        breaker.failed(permit) if n % 3 == 0 else breaker.succeeded(permit)
    assert breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize(
    ("outcomes", "is_open"),
    [
        ("fff", False),
        ("ffff", True),
        ("ssff", True),
        ("sssf", False),
        ("sssff", False),
        ("ssssfff", True),
        ("ffssssf", False),
        ("sssfff", True),
    ],
)
def test_the_breaker_opens_for_a_share_of_the_last_calls(outcomes: str, is_open: bool) -> None:
    """For four calls or more of the last six, of which a half or more have failed."""
    breaker = CircuitBreaker(ManualTime(), window=WINDOW, calls_min=CALLS_MIN, failure_share=0.5)
    for outcome in outcomes:
        permit = breaker.acquire()
        breaker.failed(permit) if outcome == "f" else breaker.succeeded(permit)
    assert breaker.state is (BreakerState.OPEN if is_open else BreakerState.CLOSED)


def test_the_smallest_window_holds_the_calls_that_open_the_breaker() -> None:
    """It is as long as the number of calls that is needed."""
    breaker = CircuitBreaker(ManualTime(), window=CALLS_MIN, calls_min=CALLS_MIN, failure_share=1.0)
    for _ in range(CALLS_MIN):
        breaker.failed(breaker.acquire())
    assert breaker.state is BreakerState.OPEN


def test_a_breaker_that_has_closed_again_has_forgotten_all_calls() -> None:
    """It takes as many failures as at first to open it."""
    time = ManualTime()
    breaker = open_breaker(time)
    for _ in range(3):
        time.now += OPEN_SECONDS
        breaker.succeeded(breaker.acquire())
        for failures in range(CALLS_MIN):
            assert breaker.state is BreakerState.CLOSED, failures
            breaker.failed(breaker.acquire())
        assert breaker.state is BreakerState.OPEN


def test_failures_outside_the_time_window_do_not_count() -> None:
    """Single failures over hours are nothing that a pause would help against."""
    time = ManualTime()
    breaker = CircuitBreaker(time, window=10, window_seconds=30.0, calls_min=5)
    for _ in range(100):
        breaker.failed(breaker.acquire())
        time.now += 7.6
    before = breaker.state
    for _ in range(2):
        breaker.failed(breaker.acquire())
    assert (before, breaker.state) == (BreakerState.CLOSED, BreakerState.OPEN)


def test_every_listener_is_called_for_each_state_change() -> None:
    """This holds for the listener of the constructor and for those that are added later; the breaker has the new state then."""
    time = ManualTime()
    first: list[BreakerState] = []
    second: list[BreakerState] = []
    breaker = CircuitBreaker(time, on_change=first.append)
    breaker.add_listener(lambda state: second.append(breaker.state))
    breaker.failed(breaker.acquire(), 1.0)
    time.now += 1.0
    breaker.succeeded(breaker.acquire())
    assert first == second == [BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED]
