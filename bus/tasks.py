"""How tasks end that do not always hear that they should."""

from __future__ import annotations

__all__ = ["cancel_tasks"]

import asyncio
from collections.abc import Iterable

_AGAIN_SECONDS = 0.1
_ROUNDS_MAX = 50


async def cancel_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """
    Cancel *tasks* until all of them have ended, for a few seconds at most.

    Once is not enough: the NATS client swallows a cancellation that reaches it while it waits for its flusher, and so
    does asyncio's ``wait_for`` before Python 3.12 when the result comes at the same moment.
    """
    left = set(tasks)
    for _ in range(_ROUNDS_MAX):
        if not left:
            return
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_SECONDS)
