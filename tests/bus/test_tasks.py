"""Pauses that end at the same moments."""

from __future__ import annotations

import asyncio

import pytest

from app.runtime.receiving import fetch_seconds
from bus.tasks import cancel_tasks, seconds_to_tick
from tests.clock import VirtualClock
from tests.parts import in_parts


async def test_loops_with_one_interval_wake_at_the_same_moments() -> None:
    """Whenever they have begun: an idle process wakes once an interval, not once for each of its loops."""
    clock, woken = VirtualClock(), dict[float, int]()

    async def loop(begin_at: float) -> None:
        await clock.sleep(begin_at)
        while True:
            await clock.sleep(seconds_to_tick(clock.monotonic(), 0.25))
            woken[clock.monotonic()] = woken.get(clock.monotonic(), 0) + 1

    tasks = [asyncio.create_task(loop(begin_at)) for begin_at in (0.0, 0.11, 0.2)]
    await clock.advance(1.0)
    await cancel_tasks(tasks)
    assert woken == {0.25: 3, 0.5: 3, 0.75: 3, 1.0: 3}


@pytest.mark.parametrize("interval", in_parts([1 / 3, 0.05, 0.1, 0.25]))
def test_each_pause_moves_the_clock_by_an_interval(interval: float) -> None:
    """Whatever the rounding of its times: a pause that does not move the clock would have no end."""
    now = 0.0
    for number in range(1, 100_000):
        now += seconds_to_tick(now, interval)
        assert now == pytest.approx(number * interval)


async def test_fetches_that_find_nothing_end_at_the_same_moments() -> None:
    """At full seconds of the monotonic clock."""
    clock = VirtualClock()
    ends = set()
    for _ in range(3):
        await clock.advance(0.3)
        ends.add(clock.monotonic() + fetch_seconds(clock))
    assert ends == {1.0}


async def test_a_task_that_swallows_its_cancellation_is_cancelled_again() -> None:
    """As the NATS client does while it waits for its flusher; the end of the process waits for all tasks."""
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed > 2:
                    raise

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    await cancel_tasks(tasks)
    is_cancelled = [task.cancelled() for task in tasks]
    while not all(task.done() for task in tasks):  # otherwise the loop would wait for them for ever
        tasks[0].cancel()
        await asyncio.sleep(0)
    assert is_cancelled == [True, True]
