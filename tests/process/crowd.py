"""Buyers who go on buying while the house is under fire, and what they were promised."""

from __future__ import annotations

__all__ = ["BUYERS", "STOCK", "Crowd"]

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import uuid4

from tests.process.client import LOST, Client, Reply

BUYERS = 12
STOCK = {"SKU-MANY": 50_000, "SKU-SOME": 1_500, "SKU-FEW": 100, "SKU-NONE": 0}


class Crowd:
    """Buyers who go on buying, whatever becomes of the server; and what they were promised."""

    def __init__(self, client: Client, rng: random.Random) -> None:
        self.client = client
        self.rng = rng
        self.is_up = asyncio.Event()
        self.is_over = False
        self.accepted: set[str] = set()
        self.cancelled: set[str] = set()
        self.pieces = dict(STOCK)
        self.unheard = 0

    async def buy(self) -> None:
        """Buy until it is over: with and without a key, and sometimes think better of it."""
        while not self.is_over:
            items = {name: self.rng.randint(1, 3) for name in self.rng.sample(list(STOCK), self.rng.choice((1, 1, 2)))}
            priority = self.rng.choice(("normal", "normal", "express"))
            key = str(uuid4()) if self.rng.random() < 0.6 else None
            reply = await self.persist(partial(self.client.post, items, key, priority=priority), is_safe=key is not None)
            if reply is None:
                self.unheard += 1
                continue
            assert reply.status == 202, reply.text
            order_id: str = reply.body["order_id"]
            self.accepted.add(order_id)
            if self.rng.random() < 0.15:
                await asyncio.sleep(self.rng.uniform(0, 0.02))  # a moment's thought: the cancellation meets any step
                await self.persist(partial(self.client.ask, "POST", f"/v1/orders/{order_id}/cancel"), is_safe=True)
                self.cancelled.add(order_id)
            await asyncio.sleep(self.rng.uniform(0, 0.06))  # a pace that leaves room for recovery

    async def restock(self) -> None:
        """Add a few pieces now and then, each time under a key."""
        while not self.is_over:
            key = str(uuid4())
            reply = await self.persist(
                partial(
                    self.client.ask, "POST", "/v1/inventory/SKU-FEW/restock", {"quantity": 2}, {"Idempotency-Key": key}
                ),
                is_safe=True,
            )
            assert reply is not None
            assert reply.status == 200, reply.text
            self.pieces["SKU-FEW"] += 2
            await asyncio.sleep(0.1)

    async def persist(self, ask: Callable[[], Awaitable[Reply]], *, is_safe: bool) -> Reply | None:
        """Ask until there is an answer; None when it was lost and asking again would not be safe."""
        while True:
            await self.is_up.wait()
            try:
                reply = await ask()
            except LOST:
                if not is_safe:
                    return None
                await asyncio.sleep(0.01)  # the news of the server's end may be a moment late
                continue
            if reply.status != 503:
                return reply
            if reply.body["code"] == "outcome_unknown" and not is_safe:
                return None
            await asyncio.sleep(0.05)
