"""A shop that keeps what the load generator needs of the HTTP contract, and misbehaves on request."""

from __future__ import annotations

__all__ = ["STEP", "FakeShop"]

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from attrs import define

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
STEP = timedelta(milliseconds=500)
"""From created to its end, by this shop's clock, for every order."""


@define
class FakeOrder:
    id: str
    customer_id: str
    items: list[dict[str, Any]]
    created_at: datetime
    fate: str
    looks_left: int

    @property
    def status(self) -> str:
        if self.looks_left > 0 or self.fate == "hold":
            return "processing"
        return "cancelled" if self.fate == "cancel" else "confirmed"

    def shown(self) -> dict[str, Any]:
        timeline = [{"event": "orders.created", "at": self.created_at.isoformat()}]
        if self.status != "processing":
            timeline.append({"event": f"orders.{self.status}", "at": (self.created_at + STEP).isoformat()})
        late = self.created_at + 20 * STEP
        return {
            "order_id": self.id,
            "customer_id": self.customer_id,
            "status": self.status,
            "items": self.items,
            "created_at": self.created_at.isoformat(),
            # What is said after the end, such as a refund, moves this and must not count.
            "updated_at": late.isoformat(),
            "timeline": timeline,
        }


class FakeShop:
    """
    Accept orders, show each as processing for *looks* listings, then end it.

    *fate* says what becomes of the n-th POST, from 0: "confirm", "cancel", "hold" (never ends), "lose" (accepted and
    forgotten), "shed" (503), "break" (500), "cut" (no answer), "orphan" (accepted, but no answer), "ghost" (no
    answer, and accepted only once the stock is looked at), "repeat" (accepted under the id of the order before) or
    "dawdle" (answered only after the order has been listed at its end).
    """

    def __init__(self, fate: Callable[[int], str] = lambda number: "confirm", *, looks: int = 0) -> None:
        self.url = ""
        self.fate = fate
        self.key: str | None = None
        """Without it nobody gets in, if there is one."""
        self.looks = looks
        self.retry_after = "0"
        self.stock_status = 200
        self.leak = 0
        """Pieces that leave the first product without an order."""
        self.stuck = 0
        """Pieces of the first product that stay reserved for nobody."""
        self.looks_until_taken = 0
        """Looks at the stock that still find everything reserved."""
        self.gate: Callable[[int], Any] | None = None
        """Awaited, with the POST's number, before a POST is answered."""
        self.posts: list[web.Request] = []
        self.bodies: list[Any] = []
        self.in_flight = 0
        self.in_flight_max = 0
        self.listings = 0
        self.peers: set[object] = set()
        """Connections that have carried a POST."""
        self.accepted: dict[str, FakeOrder] = {}
        self.ghosts: list[FakeOrder] = []
        self.stock: dict[str, int] = {}
        self.opened = asyncio.Event()
        """Set once a POST has come in."""
        self.busy = asyncio.Event()
        """Set once 50 POSTs have come in."""
        self.listed = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._let_in])
        app.router.add_put("/v1/inventory/{product_id}", self._put)
        app.router.add_get("/v1/inventory/{product_id}", self._product)
        app.router.add_post("/v1/orders", self._post)
        app.router.add_get("/v1/orders", self._list)
        return app

    @web.middleware
    async def _let_in(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.key is not None and request.headers.getall("Authorization", []) != [f"Bearer {self.key}"]:
            return web.json_response({"code": "unauthorized"}, status=401)
        return await handler(request)

    async def _put(self, request: web.Request) -> web.Response:
        product_id = request.match_info["product_id"]
        self.stock[product_id] = (await request.json())["on_hand"]
        return web.json_response({"product_id": product_id}, status=self.stock_status, headers={"Retry-After": "0"})

    async def _product(self, request: web.Request) -> web.Response:
        while self.ghosts:
            order = self.ghosts.pop()
            self.accepted[order.id] = order
        product_id = request.match_info["product_id"]
        ordered: Counter[str] = Counter()
        for order in self.accepted.values():
            for item in order.items:
                ordered[f"{item['product_id']}/{order.status}"] += item["quantity"]
        sold, held = ordered[f"{product_id}/confirmed"], ordered[f"{product_id}/processing"]
        if self.looks_until_taken > 0:
            self.looks_until_taken -= 1
            sold, held = 0, held + sold
        on_hand = self.stock[product_id] - sold
        if product_id == next(iter(self.stock)):
            on_hand, held = on_hand - self.leak, held + self.stuck
        return web.json_response({"product_id": product_id, "on_hand": on_hand, "reserved": held})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        number = len(self.posts)
        self.posts.append(request)
        self.bodies.append(await request.json())
        if request.transport is not None:
            self.peers.add(request.transport.get_extra_info("peername"))
        self.opened.set()
        if len(self.posts) >= 50:
            self.busy.set()
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            if self.gate is not None:
                await self.gate(number)
            return await self._decide(request, number)
        finally:
            self.in_flight -= 1

    async def _decide(self, request: web.Request, number: int) -> web.StreamResponse:
        fate = self.fate(number)
        if fate == "shed":
            return web.json_response({"code": "overloaded"}, status=503, headers={"Retry-After": self.retry_after})
        if fate == "break":
            return web.json_response({"code": "internal_error"}, status=500)
        body = self.bodies[number]
        order = FakeOrder(
            id=f"order-{number - 1 if fate == 'repeat' else number}",
            customer_id=body["customer_id"],
            items=body["items"],
            created_at=BEGINNING + number * STEP,
            fate=fate,
            looks_left=self.looks,
        )
        if fate == "ghost":
            self.ghosts.append(order)
        elif fate not in ("lose", "cut", "repeat"):
            self.accepted[order.id] = order
        if fate in ("cut", "orphan", "ghost"):
            assert request.transport is not None
            request.transport.close()
        if fate == "dawdle":
            await self.listed.wait()
        return web.json_response({"order_id": order.id, "status": "processing"}, status=202)

    async def _list(self, request: web.Request) -> web.Response:
        self.listings += 1
        customer_id, limit = request.query["customer_id"], int(request.query["limit"])
        mine = [order for order in reversed(self.accepted.values()) if order.customer_id == customer_id]
        start = int(request.query.get("cursor", "0"))
        page = mine[start : start + limit]
        shown = [order.shown() for order in page]
        for order in page:
            order.looks_left = max(order.looks_left - 1, 0)
        if shown:
            self.listed.set()
        # As with any keyset: a full page has a next one, though it may be empty.
        return web.json_response({"items": shown, "next_cursor": str(start + limit) if len(page) == limit else None})
