"""One lane of the payment worker: the requests of one subscription that are in hand."""

from __future__ import annotations

__all__ = ["LANE_IN_HAND_MAX", "Lane"]

import asyncio
from typing import Any

from attrs import define, field

from app.gateways.gateway_calls import LANE_CALLS_MAX

LANE_IN_HAND_MAX = 512
"""How many requests of one lane are in hand: they call the provider, or wait until their result is stored."""


@define(eq=False)
class Lane:
    """The requests of one subscription that are in hand."""

    is_behind: bool
    """False if no request waits in the bus: then `PaymentWorker.take` may use the free slots, all but one."""
    calling: set[asyncio.Task[Any]] = field(factory=set)
    """Those that need one of the provider's calls; the others wait until their result is stored."""
    in_hand: int = 0
    held: int = 0
    """How many charges wait for their breaker; they need no call meanwhile, so that refunds get through."""

    @property
    def free_slots(self) -> int:
        """How many more requests the lane may take; another limit holds for the calls of both lanes."""
        return min(LANE_CALLS_MAX - len(self.calling), LANE_IN_HAND_MAX - self.in_hand)
