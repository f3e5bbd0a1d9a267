"""Clients that use the system over HTTP and record each operation: when it was called, when and what was answered."""

from __future__ import annotations

__all__ = ["COUNTED", "SOLD", "History", "Shop"]

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import aiohttp
from attrs import define, evolve, field

from tests.histories.linearizability import NEVER, Operation
from tests.process.client import RESPONSE_LOST, Client, Reply

SOLD = {"SKU-1": 40, "SKU-2": 400}
"""The products that are sold, and their first stock: the first one runs out now and then."""

COUNTED = ("CNT-1", "CNT-2")
"""Products that are never sold: their stock is a counter of the restocks."""

REQUEST_SECONDS = 8.0
ATTEMPTS_MAX = 6
_TIMEOUT = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
_NOTHING_STORED = ("overloaded", "database_unavailable")
"""Problem codes of answers after which the request has certainly had no effect."""


@define
class History:
    """All operations of a run, each list by the object that the operations are on."""

    keys: dict[str, list[Operation]] = field(factory=lambda: defaultdict(list))
    """POSTs by Idempotency-Key, one for each attempt."""
    orders: dict[str, list[Operation]] = field(factory=lambda: defaultdict(list))
    stock: dict[str, list[Operation]] = field(factory=lambda: defaultdict(list))
    sold: dict[str, list[Operation]] = field(factory=lambda: defaultdict(list))
    """By product, each order with its quantity, from its first call on; not answered: it may not exist."""
    accepted: set[str] = field(factory=set)
    unexpected: list[str] = field(factory=list)
    """Answers that no client may get."""
    answers: dict[str, int] = field(factory=lambda: defaultdict(int))

    @property
    def count(self) -> int:
        return sum(len(each) for by in (self.keys, self.orders, self.stock) for each in by.values())

    @property
    def unanswered_keys(self) -> int:
        """How many keys were posted, and none of their attempts was accepted: each may have made an order."""
        return sum(all(each.reply is None for each in attempts) for attempts in self.keys.values())


class Shop:
    """One client: it posts orders with keys, repeats them, reads and cancels them, restocks and reads stock."""

    def __init__(self, client: Client, history: History, rng: random.Random, name: str) -> None:
        self._client = client
        self._history = history
        self._rng = rng
        self._name = name
        self._count = 0

    async def run(self, until: float) -> None:
        """Use the system until *until* on the monotonic clock."""
        actions = (self._order, self._restock, self._read_stock, self._post_other_body)
        while time.monotonic() < until:
            self._count += 1
            (action,) = self._rng.choices(actions, (6, 1, 2, 1))
            await action()
            await asyncio.sleep(self._rng.uniform(0, 0.2))  # the rate of a client

    async def _order(self) -> None:
        body = self._body()
        key = f"{self._name}-{self._count}"
        copies = 2 if self._rng.random() < 0.2 else 1  # the same request at the same time
        found = await asyncio.gather(*(self._post_until_answered(key, body) for _ in range(copies)))
        order_id = next(filter(None, found), None)
        if order_id is None:
            return
        for _ in range(self._rng.randrange(1, 5)):
            await self._call("GET", order_id)
            await asyncio.sleep(self._rng.uniform(0, 0.1))
        if self._rng.random() < 0.25:
            await self._call("POST", order_id)
            await self._call("GET", order_id)
        if self._rng.random() < 0.3:
            await self._post_until_answered(key, body)

    async def _post_other_body(self) -> None:
        """Post two bodies under one key at the same time, then both again."""
        key = f"{self._name}-{self._count}"
        bodies = (self._body(), self._body() | {"customer_id": "c-2"})
        for _ in range(2):
            await asyncio.gather(*(self._post_until_answered(key, body) for body in bodies))

    def _body(self) -> dict[str, Any]:
        products = self._rng.sample(sorted(SOLD), self._rng.randrange(1, len(SOLD) + 1))
        lines = [{"product_id": product_id, "quantity": self._rng.randrange(1, 4)} for product_id in products]
        return {"customer_id": "c-1", "items": lines}

    async def _post_until_answered(self, key: str, body: Mapping[str, Any]) -> str | None:
        """Post an order until it is answered; return its id, None if the key is that of another body."""
        began = time.monotonic()
        for line in body["items"]:
            order = Operation(name="post", value=line["quantity"], start=began)
            self._history.sold[line["product_id"]].append(order)
        for _ in range(ATTEMPTS_MAX):
            attempt = Operation(name="post", value=repr(body), start=time.monotonic())
            reply = await self._request("POST", "/v1/orders", json=body, headers={"Idempotency-Key": key})
            if reply is not None and reply.status == 202:
                order_id: str = reply.body["order_id"]
                is_replayed = reply.headers.get("Idempotency-Replayed") == "true"
                self._add(self._history.keys[key], attempt, ("accepted", order_id, is_replayed))
                self._history.accepted.add(order_id)
                return order_id
            if reply is not None and reply.status == 422:
                self._add(self._history.keys[key], attempt, ("reused",))
                return None
            if not self._is_without_effect(reply):
                self._history.keys[key].append(attempt)
            await asyncio.sleep(self._rng.uniform(0.05, 0.5))  # the delay of a client before it repeats the request
        return None

    async def _call(self, method: str, order_id: str) -> None:
        """Read or cancel the order."""
        operation = Operation(name="read" if method == "GET" else "cancel", start=time.monotonic())
        path = f"/v1/orders/{order_id}" if method == "GET" else f"/v1/orders/{order_id}/cancel"
        reply = await self._request(method, path)
        if reply is not None and reply.status == (200 if method == "GET" else 202):
            self._add(self._history.orders[order_id], operation, (reply.body["status"], reply.body["reason"]))
        elif method == "POST" and not self._is_without_effect(reply):
            self._history.orders[order_id].append(operation)

    async def _restock(self) -> None:
        """Restock a product under a key until it is answered: it takes effect once, between the first call and the answer."""
        product_id = self._rng.choice([*COUNTED, *SOLD])
        operation = Operation(name="restock", value=self._rng.randrange(1, 9), start=time.monotonic())
        headers = {"Idempotency-Key": f"{self._name}-{self._count}"}
        is_unknown = False
        for _ in range(ATTEMPTS_MAX):
            path = f"/v1/inventory/{product_id}/restock"
            reply = await self._request("POST", path, json={"quantity": operation.value}, headers=headers)
            if reply is not None and reply.status == 200:
                seen = reply.body["on_hand"] if product_id in COUNTED else None
                self._add(self._history.stock[product_id], operation, seen)
                return
            is_unknown |= not self._is_without_effect(reply)
            await asyncio.sleep(self._rng.uniform(0.05, 0.5))  # the delay of a client before it repeats the request
        if is_unknown:
            self._history.stock[product_id].append(operation)

    async def _read_stock(self) -> None:
        await self.read_stock(self._rng.choice([*COUNTED, *SOLD]))

    async def read_stock(self, product_id: str) -> None:
        """Read the stock of one product."""
        operation = Operation(name="read", start=time.monotonic())
        reply = await self._request("GET", f"/v1/inventory/{product_id}")
        if reply is not None and reply.status == 200:
            found = tuple(reply.body[name] for name in ("on_hand", "reserved", "available"))
            self._add(self._history.stock[product_id], operation, found[0] if product_id in COUNTED else found)

    def _add(self, operations: list[Operation], operation: Operation, reply: Any) -> None:
        assert operation.end == NEVER
        operations.append(evolve(operation, reply=reply, end=time.monotonic()))

    async def _request(self, method: str, path: str, **more: Any) -> Reply | None:
        """Send one request; return None if there is no answer."""
        try:
            reply = await self._client.request(method, path, timeout=_TIMEOUT, **more)
        except RESPONSE_LOST:
            self._history.answers[f"{method} none"] += 1
            return None
        self._history.answers[f"{method} {reply.status}"] += 1
        if reply.status not in (200, 202, 422, 503):
            self._history.unexpected.append(f"{method} {path}: {reply.status} {reply.text}")
        return reply

    def _is_without_effect(self, reply: Reply | None) -> bool:
        return reply is not None and reply.status == 503 and reply.body["code"] in _NOTHING_STORED
