"""The tasks of a process: their cancellation, and pauses that end at the same moments."""

from __future__ import annotations

__all__ = ["cancel_tasks", "seconds_to_tick"]

import asyncio
from collections.abc import Iterable

_RETRY_SECONDS = 0.1
_ATTEMPTS_MAX = 50


async def cancel_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """
    Cancel *tasks*, repeatedly for up to five seconds, until all of them have ended.

    One cancellation is not enough: the NATS client swallows a cancellation that reaches it while it waits for its
    flusher, and so does asyncio's ``wait_for`` before Python 3.12 if the result arrives at the same moment.
    """
    running = set(tasks)
    for _ in range(_ATTEMPTS_MAX):
        if not running:
            return
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_RETRY_SECONDS)


def seconds_to_tick(now: float, interval_seconds: float) -> float:
    """
    Return the time from *now*, on the monotonic clock, until the next multiple of *interval_seconds*.

    Loops with the same interval that pause for this time wake the process once an interval, not once each. A multiple that is
    nearer than a hundredth of the interval counts as *now*: rounding may leave a time that is too short for the clock to move.
    """
    seconds = interval_seconds - now % interval_seconds
    return seconds if seconds > interval_seconds / 100 else seconds + interval_seconds
