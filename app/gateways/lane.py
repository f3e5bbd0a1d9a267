"""One lane of the payment worker: the requests of one subscription that are in hand, and those that wait for a free call."""

from __future__ import annotations

__all__ = ["HELD_MAX", "LANE_IN_HAND_MAX", "WAITING_MAX", "WAITING_SECONDS_MAX", "Lane"]

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from attrs import define, field

from app.gateways.gateway_calls import LANE_CALLS_MAX
from app.runtime.work import OutgoingEvent

LANE_IN_HAND_MAX = 512
"""How many requests of one lane are in hand: they call the provider, or wait until their result is stored."""

HELD_MAX = 100
"""How many charges of one lane wait for their breaker in hand; then the subscription is paused."""

WAITING_MAX = 512
"""How many requests of one lane that were taken without the bus wait for a free call; more of them wait in the bus."""

WAITING_SECONDS_MAX = 5.0
"""When one has waited for longer, the bus carries the others: a row of the outbox must not look stuck while the provider is slow."""


@define(eq=False)
class Lane:
    """The requests of one subscription that are in hand."""

    is_behind: bool
    """False if no request waits in the bus: then `PaymentWorker.take` may use the free slots, all but one."""
    waiting: deque[tuple[OutgoingEvent, asyncio.Future[bool], float]] = field(factory=deque)
    """Requests that were taken and wait for a free slot, each with the future that `PaymentWorker.take` has returned, and since when."""
    calling: set[asyncio.Task[Any]] = field(factory=set)
    """Those that need one of the provider's calls; the others wait until their result is stored."""
    in_hand: int = 0
    held: int = 0
    """How many charges wait for their breaker; they need no call meanwhile, so that refunds get through."""

    @property
    def free_slots(self) -> int:
        """How many more requests the lane may take; another limit holds for the calls of both lanes."""
        return min(LANE_CALLS_MAX - len(self.calling), LANE_IN_HAND_MAX - self.in_hand)

    @property
    def is_full(self) -> bool:
        """True if as many requests wait as may."""
        return len(self.waiting) >= WAITING_MAX

    def wait(self, event: OutgoingEvent, now: float) -> asyncio.Future[bool]:
        """Append *event* to those that wait; return a future for the result of its request. *now* is a monotonic time."""
        taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiting.append((event, taken, now))
        return taken

    def start_next(self, start: Callable[[OutgoingEvent], asyncio.Task[bool]], now: float) -> None:
        """Process the request that has waited longest: *start* returns its task. If that was too long, leave the others to the bus."""
        event, taken, since = self.waiting.popleft()
        start(event).add_done_callback(partial(_pass_on, taken))
        if now > since + WAITING_SECONDS_MAX:
            self.leave_to_bus()

    def leave_to_bus(self) -> None:
        """Have the bus carry every request that waits."""
        for _, taken, _ in self.waiting:
            if not taken.done():
                taken.set_result(False)
        self.waiting.clear()
        self.is_behind = True


def _pass_on(taken: asyncio.Future[bool], task: asyncio.Task[bool]) -> None:
    """End *taken* as *task* has ended; the bus carries a request whose task was cancelled or has failed."""
    if not taken.done():
        taken.set_result(not task.cancelled() and task.exception() is None and task.result())
