"""A fake server: the part of the HTTP API that the load test needs, with faults that a test can switch on."""

from __future__ import annotations

__all__ = ["STEP", "FakeServer"]

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
"""The time from the creation of an order to its end, by the clock of this server."""


@define
class FakeOrder:
    id: str
    customer_id: str
    items: list[dict[str, Any]]
    created_at: datetime
    behaviour: str
    open_polls_left: int

    @property
    def status(self) -> str:
        if self.open_polls_left > 0 or self.behaviour == "hold":
            return "processing"
        return "cancelled" if self.behaviour == "cancel" else "confirmed"

    def to_json(self) -> dict[str, Any]:
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
            # Changes after the end, such as a refund, move this; the load test must not use it.
            "updated_at": late.isoformat(),
            "timeline": timeline,
        }


class FakeServer:
    """
    Accepts orders, lists each as processing *open_polls* times, then ends it.

    *behaviour* maps the number of a POST, from 0, to what happens to it:

    - "confirm", "cancel": accepted, with this final state
    - "hold": accepted, never ends
    - "lose": answered with 202, but not stored
    - "reject": answered with 503
    - "error": answered with 500
    - "disconnect": no response, not accepted
    - "disconnect after accept": accepted, no response
    - "accept late": no response, accepted only when the stock is read
    - "duplicate id": answered with the id of the order before
    - "respond late": answered only after the order was listed with its final state
    """

    def __init__(self, behaviour: Callable[[int], str] = lambda number: "confirm", *, open_polls: int = 0) -> None:
        self.url = ""
        self.behaviour = behaviour
        self.key: str | None = None
        """The API key that every request must carry; None accepts every request."""
        self.open_polls = open_polls
        self.retry_after = "0"
        self.stock_status = 200
        self.missing_stock = 0
        """Pieces of the first product that disappear without an order."""
        self.stuck_reserved = 0
        """Pieces of the first product that stay reserved without an order."""
        self.late_stock_reads = 0
        """Reads of the stock that still show everything as reserved."""
        self.gate: Callable[[int], Any] | None = None
        """Awaited with the number of the POST before it is answered."""
        self.posts: list[web.Request] = []
        self.bodies: list[Any] = []
        self.in_flight = 0
        self.in_flight_max = 0
        self.listings = 0
        self.peers: set[object] = set()
        """Client addresses of the connections that carried a POST."""
        self.accepted: dict[str, FakeOrder] = {}
        self.late_orders: list[FakeOrder] = []
        self.stock: dict[str, int] = {}
        self.first_post = asyncio.Event()
        """Set when the first POST has arrived."""
        self.many_posts = asyncio.Event()
        """Set when 50 POSTs have arrived."""
        self.listed = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._authenticate])
        app.router.add_put("/v1/inventory/{product_id}", self._put)
        app.router.add_get("/v1/inventory/{product_id}", self._product)
        app.router.add_post("/v1/orders", self._post)
        app.router.add_get("/v1/orders", self._list)
        return app

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.key is not None and request.headers.getall("Authorization", []) != [f"Bearer {self.key}"]:
            return web.json_response({"code": "unauthorized"}, status=401)
        return await handler(request)

    async def _put(self, request: web.Request) -> web.Response:
        product_id = request.match_info["product_id"]
        self.stock[product_id] = (await request.json())["on_hand"]
        return web.json_response({"product_id": product_id}, status=self.stock_status, headers={"Retry-After": "0"})

    async def _product(self, request: web.Request) -> web.Response:
        while self.late_orders:
            order = self.late_orders.pop()
            self.accepted[order.id] = order
        product_id = request.match_info["product_id"]
        ordered: Counter[str] = Counter()
        for order in self.accepted.values():
            for item in order.items:
                ordered[f"{item['product_id']}/{order.status}"] += item["quantity"]
        sold, reserved = ordered[f"{product_id}/confirmed"], ordered[f"{product_id}/processing"]
        if self.late_stock_reads > 0:
            self.late_stock_reads -= 1
            sold, reserved = 0, reserved + sold
        on_hand = self.stock[product_id] - sold
        if product_id == next(iter(self.stock)):
            on_hand, reserved = on_hand - self.missing_stock, reserved + self.stuck_reserved
        return web.json_response({"product_id": product_id, "on_hand": on_hand, "reserved": reserved})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        number = len(self.posts)
        self.posts.append(request)
        self.bodies.append(await request.json())
        if request.transport is not None:
            self.peers.add(request.transport.get_extra_info("peername"))
        self.first_post.set()
        if len(self.posts) >= 50:
            self.many_posts.set()
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            if self.gate is not None:
                await self.gate(number)
            return await self._answer(request, number)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request, number: int) -> web.StreamResponse:
        behaviour = self.behaviour(number)
        if behaviour == "reject":
            return web.json_response({"code": "overloaded"}, status=503, headers={"Retry-After": self.retry_after})
        if behaviour == "error":
            return web.json_response({"code": "internal_error"}, status=500)
        body = self.bodies[number]
        order = FakeOrder(
            id=f"order-{number - 1 if behaviour == 'duplicate id' else number}",
            customer_id=body["customer_id"],
            items=body["items"],
            created_at=BEGINNING + number * STEP,
            behaviour=behaviour,
            open_polls_left=self.open_polls,
        )
        if behaviour == "accept late":
            self.late_orders.append(order)
        elif behaviour not in ("lose", "disconnect", "duplicate id"):
            self.accepted[order.id] = order
        if behaviour in ("disconnect", "disconnect after accept", "accept late"):
            assert request.transport is not None
            request.transport.close()
        if behaviour == "respond late":
            await self.listed.wait()
        return web.json_response({"order_id": order.id, "status": "processing"}, status=202)

    async def _list(self, request: web.Request) -> web.Response:
        self.listings += 1
        customer_id, limit = request.query["customer_id"], int(request.query["limit"])
        orders = [order for order in reversed(self.accepted.values()) if order.customer_id == customer_id]
        start = int(request.query.get("cursor", "0"))
        page = orders[start : start + limit]
        items = [order.to_json() for order in page]
        for order in page:
            order.open_polls_left = max(order.open_polls_left - 1, 0)
        if items:
            self.listed.set()
        # As with every keyset pagination: a full page has a next page, which may be empty.
        return web.json_response({"items": items, "next_cursor": str(start + limit) if len(page) == limit else None})
