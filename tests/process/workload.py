"""A workload of buyers that runs while the server is killed and restarted, and a record of what was accepted."""

from __future__ import annotations

__all__ = ["BUYERS", "STOCK", "Workload"]

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import uuid4

from tests.process.client import RESPONSE_LOST, Client, Reply

BUYERS = 12
STOCK = {"SKU-MANY": 50_000, "SKU-SOME": 1_500, "SKU-FEW": 100, "SKU-NONE": 0}


class Workload:
    """
    Places, cancels and restocks until it is stopped, and repeats requests while the server is down.

    *accepted* and *cancelled* are order ids, *stock* is the expected total of each product, *lost_responses* counts the
    orders without an idempotency key whose response was lost: the server may have accepted them.
    """

    def __init__(self, client: Client, rng: random.Random) -> None:
        self.client = client
        self.rng = rng
        self.server_is_up = asyncio.Event()
        self.is_stopped = False
        self.accepted: set[str] = set()
        self.cancelled: set[str] = set()
        self.stock = dict(STOCK)
        self.lost_responses = 0

    async def buy(self) -> None:
        """Place orders until stopped, with and without an idempotency key, and cancel some of them."""
        while not self.is_stopped:
            items = {name: self.rng.randint(1, 3) for name in self.rng.sample(list(STOCK), self.rng.choice((1, 1, 2)))}
            priority = self.rng.choice(("normal", "normal", "express"))
            key = str(uuid4()) if self.rng.random() < 0.6 else None
            reply = await self.send_until_answered(
                partial(self.client.post, items, key, priority=priority), is_safe=key is not None
            )
            if reply is None:
                self.lost_responses += 1
                continue
            assert reply.status == 202, reply.text
            order_id: str = reply.body["order_id"]
            self.accepted.add(order_id)
            if self.rng.random() < 0.15:
                await asyncio.sleep(self.rng.uniform(0, 0.02))  # so that the cancellation arrives at different steps
                await self.send_until_answered(
                    partial(self.client.request, "POST", f"/v1/orders/{order_id}/cancel"), is_safe=True
                )
                self.cancelled.add(order_id)
            await asyncio.sleep(self.rng.uniform(0, 0.06))  # a rate that leaves time for recovery

    async def restock(self) -> None:
        """Add a few pieces repeatedly, each time with an idempotency key."""
        while not self.is_stopped:
            key = str(uuid4())
            reply = await self.send_until_answered(
                partial(
                    self.client.request,
                    "POST",
                    "/v1/inventory/SKU-FEW/restock",
                    {"quantity": 2},
                    {"Idempotency-Key": key},
                ),
                is_safe=True,
            )
            assert reply is not None
            assert reply.status == 200, reply.text
            self.stock["SKU-FEW"] += 2
            await asyncio.sleep(0.1)

    async def send_until_answered(self, send: Callable[[], Awaitable[Reply]], *, is_safe: bool) -> Reply | None:
        """Repeat a request until there is a response; return None if it was lost and repeating is not safe."""
        while True:
            await self.server_is_up.wait()
            try:
                reply = await send()
            except RESPONSE_LOST:
                if not is_safe:
                    return None
                await asyncio.sleep(0.01)  # the event may be cleared a moment after the server has ended
                continue
            if reply.status != 503:
                return reply
            if reply.body["code"] == "outcome_unknown" and not is_safe:
                return None
            await asyncio.sleep(0.05)
