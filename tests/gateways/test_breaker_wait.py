"""Where calls wait for the breaker."""

from __future__ import annotations

import asyncio

from app.gateways.breaker_wait import BreakerWait
from app.gateways.circuit_breaker import BreakerOpen, BreakerState, CircuitBreaker
from tests.clock import VirtualClock


def opened(clock: VirtualClock) -> tuple[CircuitBreaker, BreakerWait]:
    """Return a breaker that the provider has asked for ten seconds, and its gate."""
    breaker = CircuitBreaker(clock.monotonic)
    gate = BreakerWait(breaker, clock)
    breaker.failed(breaker.acquire(), 10.0)
    return breaker, gate


async def calling(breaker: CircuitBreaker, gate: BreakerWait, calls: list[float], clock: VirtualClock, seconds: float = 1.0) -> None:
    """Call as the worker does: wait until it may, take a while, succeed."""
    while True:
        try:
            leave = breaker.acquire()
            break
        except BreakerOpen:
            await gate.until_retry()
    calls.append(clock.monotonic())
    await clock.sleep(seconds)
    breaker.succeeded(leave)


async def test_of_fifty_who_wait_one_is_the_probe_and_the_rest_follow_at_once() -> None:
    """None before the time is over, one when it is, and all when that has succeeded."""
    clock = VirtualClock()
    breaker, gate = opened(clock)
    calls: list[float] = []
    tasks = [asyncio.create_task(calling(breaker, gate, calls, clock)) for _ in range(50)]
    await clock.advance(9.9)
    assert calls == []
    await clock.advance(0.5)
    assert len(calls) == 1
    assert breaker.state is BreakerState.HALF_OPEN
    await clock.run(asyncio.gather(*tasks))
    assert len(calls) == 50
    assert max(calls) - min(calls) <= 1.01


async def test_nobody_is_fetched_while_somebody_waits() -> None:
    """Who waits in hand is the next probe; only when nobody does is one fetched, and only when it may call."""
    clock = VirtualClock()
    _, gate = opened(clock)
    waiting = asyncio.create_task(gate.until_retry())
    fetching = asyncio.create_task(gate.until_permit())
    await clock.advance(5)
    assert not fetching.done()
    await clock.advance(6)
    assert waiting.done()
    assert fetching.done()


async def test_closing_sends_home_who_waits_and_fetches_nobody() -> None:
    """At once, however long the breaker stays open; and nothing spins."""
    clock = VirtualClock()
    _, gate = opened(clock)
    waiting = [asyncio.create_task(gate.until_retry()) for _ in range(3)]
    fetching = asyncio.create_task(gate.until_permit())
    await clock.settle()
    gate.shutdown()
    await clock.settle()
    assert all(task.done() for task in waiting)
    assert not fetching.done()
    await gate.until_retry()
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
