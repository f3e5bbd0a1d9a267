"""Cancellation of tasks that may swallow a first cancellation."""

from __future__ import annotations

__all__ = ["cancel_tasks"]

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
