"""One lane of the payment worker: the requests of one subscription that are in hand."""

from __future__ import annotations

__all__ = ["Lane"]

import asyncio
from typing import Any

from attrs import define, field


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
