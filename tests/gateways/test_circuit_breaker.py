"""The circuit breaker, beside a model that is too simple to be wrong."""

from __future__ import annotations

from contextlib import suppress

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.gateways.circuit_breaker import BreakerOpen, BreakerState, CircuitBreaker, Permit

WINDOW, CALLS_MIN, WINDOW_SECONDS, OPEN_SECONDS, PROBES = 6, 4, 20.0, 5.0, 2


@define
class Hand:
    """A clock's hand."""

    at: float = 100.0

    def __call__(self) -> float:
        return self.at


@define
class Model:
    """The breaker again, from its description: a list of all that happened, counted anew each time."""

    state: str = "closed"
    epoch: int = 0
    results: list[tuple[float, bool]] = field(factory=list)
    until: float = 0.0
    out: int = 0
    good: int = 0

    def enter(self, now: float) -> int | None:
        if self.state == "open" and now >= self.until:
            self.turn("half-open")
        if self.state == "open" or (self.state == "half-open" and self.out + self.good >= PROBES):
            return None
        self.out += self.state == "half-open"
        return self.epoch

    def done(self, epoch: int, result: bool | None, now: float, asked: float | None) -> None:
        if epoch != self.epoch:
            return
        if self.state == "half-open":
            self.out -= 1
            self.good += result is True
            if result is False:
                self.open(now, asked)
            elif self.good >= PROBES:
                self.turn("closed")
        elif self.state == "closed" and result is not None:
            self.results.append((now, result))
            recent = [good for at, good in self.results[-WINDOW:] if at >= now - WINDOW_SECONDS]
            bad = recent.count(False)
            if not result and (asked is not None or (len(recent) >= CALLS_MIN and 2 * bad >= len(recent))):
                self.open(now, asked)

    def open(self, now: float, asked: float | None) -> None:
        self.until = now + (asked or OPEN_SECONDS)
        self.turn("open")

    def turn(self, state: str) -> None:
        self.state, self.results, self.out, self.good = state, [], 0, 0
        self.epoch += 1


class BesideTheModel(RuleBasedStateMachine):
    """Any calls, ending in any way and at any time: breaker and model agree."""

    def __init__(self) -> None:
        super().__init__()
        self.hand = Hand()
        self.changes: list[BreakerState] = []
        self.breaker = CircuitBreaker(
            self.hand,
            window=WINDOW,
            window_seconds=WINDOW_SECONDS,
            calls_min=CALLS_MIN,
            failure_share=0.5,
            open_seconds=OPEN_SECONDS,
            probes=PROBES,
            on_change=self.changes.append,
        )
        self.model = Model()
        self.out: list[tuple[Permit, int]] = []

    @rule()
    def enter(self) -> None:
        is_passable = self.breaker.wait_seconds == 0
        expected = self.model.enter(self.hand.at)
        assert is_passable == (expected is not None)
        if expected is None:
            with pytest.raises(BreakerOpen) as caught:
                self.breaker.acquire()
            assert caught.value.retry_after_seconds > 0
        else:
            self.out.append((self.breaker.acquire(), expected))

    @precondition(lambda self: self.out)
    @rule(index=st.integers(0, 99), result=st.sampled_from([True, False, False, None]), asked=st.sampled_from([None, None, 0.5, 30.0]))
    def leave(self, index: int, result: bool | None, asked: float | None) -> None:
        leave, epoch = self.out.pop(index % len(self.out))
        self.model.done(epoch, result, self.hand.at, asked)
        if result is None:
            self.breaker.cancelled(leave)
        elif result:
            self.breaker.succeeded(leave)
        else:
            self.breaker.failed(leave, asked)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 9.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.hand.at += seconds

    @invariant()
    def agree(self) -> None:
        assert self.breaker.state.name.lower().replace("_", "-") == self.model.state
        assert self.changes == [] or self.changes[-1] is self.breaker.state


BesideTheModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBesideTheModel = BesideTheModel.TestCase


def opened(hand: Hand) -> CircuitBreaker:
    """Return a breaker that has just opened."""
    breaker = CircuitBreaker(hand, window=WINDOW, calls_min=CALLS_MIN, failure_share=0.5, open_seconds=OPEN_SECONDS)
    for _ in range(CALLS_MIN):
        breaker.failed(breaker.acquire())
    assert breaker.state is BreakerState.OPEN
    return breaker


def entering(breaker: CircuitBreaker, times: int) -> list[Permit]:
    """Return the passes that *times* attempts get."""
    got = []
    for _ in range(times):
        with suppress(BreakerOpen):
            got.append(breaker.acquire())
    return got


def test_open_lets_nobody_call_and_half_open_exactly_one_of_fifty() -> None:
    """The provider in trouble is asked by one, and only once its time is over."""
    hand = Hand()
    breaker = opened(hand)
    assert entering(breaker, 50) == []
    hand.at += OPEN_SECONDS
    [probe] = entering(breaker, 50)
    assert breaker.state is BreakerState.HALF_OPEN
    breaker.succeeded(probe)
    assert (breaker.state, len(entering(breaker, 50))) == (BreakerState.CLOSED, 50)


def test_a_failed_probe_opens_it_again_for_its_whole_time() -> None:
    """Then there is one probe again."""
    hand = Hand()
    breaker = opened(hand)
    hand.at += OPEN_SECONDS
    breaker.failed(breaker.acquire())
    hand.at += OPEN_SECONDS - 0.01
    assert entering(breaker, 50) == []
    hand.at += 0.01
    assert len(entering(breaker, 50)) == 1


def test_a_cancelled_probe_lets_another_one_go() -> None:
    """What we gave up ourselves says nothing about the provider, and blocks nobody."""
    hand = Hand()
    breaker = opened(hand)
    hand.at += OPEN_SECONDS
    breaker.cancelled(breaker.acquire())
    assert breaker.state is BreakerState.HALF_OPEN
    assert len(entering(breaker, 50)) == 1


def test_late_results_of_an_earlier_state_change_nothing() -> None:
    """A call that began while it was closed does not decide about the probe."""
    hand = Hand()
    breaker = CircuitBreaker(hand, window=WINDOW, calls_min=CALLS_MIN, failure_share=0.5, open_seconds=OPEN_SECONDS)
    late = entering(breaker, 3)
    for _ in range(CALLS_MIN):
        breaker.failed(breaker.acquire())
    hand.at += OPEN_SECONDS
    [probe] = entering(breaker, 1)
    breaker.succeeded(late[0])
    breaker.failed(late[1], 1000.0)
    breaker.cancelled(late[2])
    assert (breaker.state, entering(breaker, 50)) == (BreakerState.HALF_OPEN, [])
    breaker.succeeded(probe)
    assert breaker.state is BreakerState.CLOSED


def test_it_comes_back_when_the_provider_asked() -> None:
    """Retry-After opens it at once, for as long as it says."""
    hand = Hand()
    breaker = CircuitBreaker(hand)
    breaker.failed(breaker.acquire(), 42.0)
    with pytest.raises(BreakerOpen) as caught:
        breaker.acquire()
    assert caught.value.retry_after_seconds == pytest.approx(42.0)
    hand.at += 41.9
    assert entering(breaker, 5) == []
    hand.at += 0.1
    assert len(entering(breaker, 5)) == 1


def test_a_few_failures_among_many_calls_leave_it_closed() -> None:
    """It takes a share of the last calls, and a number of them."""
    breaker = CircuitBreaker(Hand(), window=10, calls_min=5)
    for n in range(100):
        leave = breaker.acquire()
        breaker.failed(leave) if n % 3 == 0 else breaker.succeeded(leave)
    assert breaker.state is BreakerState.CLOSED


def test_failures_long_ago_do_not_count() -> None:
    """A failure now and then, over hours, is no trouble that a pause could cure."""
    hand = Hand()
    breaker = CircuitBreaker(hand, window=10, window_seconds=30.0, calls_min=5)
    for _ in range(100):
        breaker.failed(breaker.acquire())
        hand.at += 7.6
    before = breaker.state
    for _ in range(2):
        breaker.failed(breaker.acquire())
    assert (before, breaker.state) == (BreakerState.CLOSED, BreakerState.OPEN)


def test_everybody_who_follows_hears_of_each_change() -> None:
    """Whoever it was made with, and who came later."""
    hand = Hand()
    first: list[BreakerState] = []
    second: list[BreakerState] = []
    breaker = CircuitBreaker(hand, on_change=first.append)
    breaker.add_listener(second.append)
    breaker.failed(breaker.acquire(), 1.0)
    hand.at += 1.0
    breaker.succeeded(breaker.acquire())
    assert first == second == [BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED]
