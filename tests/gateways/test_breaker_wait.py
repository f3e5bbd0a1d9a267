"""Calls that wait for the circuit breaker."""

from __future__ import annotations

import asyncio

from app.gateways.breakers.breaker_wait import BreakerWait
from app.gateways.breakers.circuit_breaker import BreakerOpen, BreakerState, CircuitBreaker
from tests.clock import VirtualClock


def open_breaker(clock: VirtualClock) -> tuple[CircuitBreaker, BreakerWait]:
    """Return a breaker that a Retry-After of ten seconds has opened, and what waits for it."""
    breaker = CircuitBreaker(clock.monotonic)
    breaker_wait = BreakerWait(breaker, clock)
    breaker.failed(breaker.acquire(), 10.0)
    return breaker, breaker_wait


async def call_when_permitted(
    breaker: CircuitBreaker, breaker_wait: BreakerWait, calls: list[float], clock: VirtualClock
) -> None:
    """Make a call as the worker does: wait for a permit, take a second, and succeed."""
    while True:
        try:
            permit = breaker.acquire()
            break
        except BreakerOpen:
            await breaker_wait.until_retry()
    calls.append(clock.monotonic())
    await clock.sleep(1.0)
    breaker.succeeded(permit)


async def test_of_fifty_waiting_calls_one_is_the_probe_and_the_others_follow_at_once() -> None:
    """No call is made during the open period, one after it, and all others once that one has succeeded."""
    clock = VirtualClock()
    breaker, breaker_wait = open_breaker(clock)
    calls: list[float] = []
    tasks = [asyncio.create_task(call_when_permitted(breaker, breaker_wait, calls, clock)) for _ in range(50)]
    await clock.advance(9.9)
    assert calls == []
    await clock.advance(0.5)
    assert len(calls) == 1
    assert breaker.state is BreakerState.HALF_OPEN
    await clock.run(asyncio.gather(*tasks))
    assert len(calls) == 50
    assert max(calls) - min(calls) <= 1.01


async def test_no_request_is_fetched_while_another_one_waits() -> None:
    """A waiting request is the next probe. Only if none waits, one is fetched, and only when it may call."""
    clock = VirtualClock()
    _, breaker_wait = open_breaker(clock)
    waiting = asyncio.create_task(breaker_wait.until_retry())
    fetching = asyncio.create_task(breaker_wait.until_permit())
    await clock.advance(5)
    assert not fetching.done()
    await clock.advance(6)
    assert waiting.done()
    assert fetching.done()


async def test_shutdown_ends_all_waits_and_fetches_nothing() -> None:
    """It does so at once, however long the breaker stays open, and `until_permit` does not spin."""
    clock = VirtualClock()
    _, breaker_wait = open_breaker(clock)
    waiting = [asyncio.create_task(breaker_wait.until_retry()) for _ in range(3)]
    fetching = asyncio.create_task(breaker_wait.until_permit())
    await clock.settle()
    breaker_wait.shutdown()
    await clock.settle()
    assert all(task.done() for task in waiting)
    assert not fetching.done()
    await breaker_wait.until_retry()
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
