"""No order is open for longer than its time-out, also while faults last."""

from __future__ import annotations

__all__ = ["OPEN_ORDERS", "UNDISTURBED_SECONDS", "check_deadlines"]

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.world.world import World

OPEN_ORDERS = "SELECT order_id, status FROM orders_order WHERE status NOT IN ('confirmed', 'cancelled')"

CHECK_SECONDS = 3.0

UNDISTURBED_SECONDS = 15.0
"""How late a timer may be in a process that works: after a start, or after a fault, what has waited is done first."""

HEARTBEAT_SECONDS = 12.0
"""How much a timer may be late after a start: the time that it has left is counted from the last heartbeat."""


async def check_deadlines(world: World) -> None:
    """
    Check again and again, until cancelled.

    A timer counts only the time in which its process runs, and it waits for the file and the bus of the process.
    """
    places = world.places_of("orders")
    poisoned = {each.customer for each in world.plan.poisons}
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        if world.is_disturbed("orders", UNDISTURBED_SECONDS):
            continue
        slack = UNDISTURBED_SECONDS + world.delay_seconds + sum(HEARTBEAT_SECONDS * place.starts + place.down_seconds for place in places)
        for order_id, status in world.read("orders", OPEN_ORDERS):
            at, name = world.placed_at.get(order_id), world.label(order_id)
            if at is not None and world.now > at + world.plan.timeout_seconds + slack and name not in poisoned:
                world.fail(f"liveness: {name} is {status} {world.now - at:.0f} s after it was placed")
                return
