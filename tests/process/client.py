"""An HTTP client for tests: it returns status, headers and body of every response unchanged."""

from __future__ import annotations

__all__ = ["RESPONSE_LOST", "Client", "Reply", "RequestTarget", "connecting", "eventually"]

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
from attrs import frozen
from multidict import CIMultiDictProxy

T = TypeVar("T")

RESPONSE_LOST = (aiohttp.ClientError, ConnectionError, TimeoutError)
"""What a request raises when no response arrives."""


@frozen
class Reply:
    """A response; *body* is the parsed JSON, or None for an empty body."""

    status: int
    headers: CIMultiDictProxy[str]
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text) if self.text else None


@asynccontextmanager
async def connecting() -> AsyncIterator[Callable[[RequestTarget], Client]]:
    """Yield a function that makes clients; they are closed at the end."""
    clients: list[Client] = []

    def make(server: RequestTarget) -> Client:
        clients.append(Client(server))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


async def eventually(fetch: Callable[[], Awaitable[T]], is_met: Callable[[T], bool], seconds: float = 30.0) -> T:
    """Call *fetch* until its result *is_met*, and return it; fail with the last result after *seconds* and three calls."""
    deadline = time.monotonic() + seconds
    calls = 1
    while not is_met(result := await fetch()):
        assert calls < 3 or time.monotonic() < deadline, f"not met after {seconds:g} s: {result}"
        calls += 1
        await asyncio.sleep(0.02)  # polling is the only way to wait for the state of another process
    return result


class RequestTarget(Protocol):
    """The target of a client: one server, or several servers that serve different paths."""

    def url_of(self, path: str) -> str:
        """Return the current URL of *path*."""

    def database_of(self, module: str) -> Path | str:
        """Return the database of *module*: a SQLite file or an address."""


class Client:
    """Sends HTTP requests to the current address of *server*."""

    def __init__(self, server: RequestTarget) -> None:
        self.server = server
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=60), connector=aiohttp.TCPConnector(limit=0)
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, **more: Any
    ) -> Reply:
        """Send one request; *body* is sent as JSON."""
        if body is not None:
            more["json"] = body
        return await self.request_url(self.server.url_of(path), method, headers=headers, **more)

    async def request_url(self, url: str, method: str = "GET", **more: Any) -> Reply:
        """Send one request to *url*."""
        async with self._session.request(method, url, **more) as response:
            return Reply(response.status, response.headers, await response.text())

    async def get(self, path: str, status: int = 200, **headers: str) -> Any:
        """Return the JSON of a GET of *path*, which must have *status*."""
        reply = await self.request("GET", path, headers=headers)
        assert reply.status == status, f"GET {path}: {reply.status} {reply.text}"
        return reply.body

    async def stock(self, product_id: str, on_hand: int, amount: int = 100, currency: str = "EUR") -> Any:
        """Set the stock and the price of a product; return the product."""
        body = {"on_hand": on_hand, "unit_price": {"amount": amount, "currency": currency}}
        reply = await self.request("PUT", f"/v1/inventory/{product_id}", body)
        assert reply.status == 200, reply.text
        return reply.body

    async def post(self, items: Mapping[str, int], key: str | None = None, **more: Any) -> Reply:
        """Place an order for *items*, quantities by product id; return the response."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self.request("POST", "/v1/orders", _order(items) | more, headers)

    async def place(self, items: Mapping[str, int], key: str | None = None, **more: Any) -> str:
        """Place an order that must be accepted; return its id."""
        reply = await self.post(items, key, **more)
        assert reply.status == 202, reply.text
        order_id: str = reply.body["order_id"]
        return order_id

    async def stream(self, order_id: str) -> AsyncIterator[Any]:
        """Yield the order after each change, from the server-sent events, until the stream ends."""
        async with self._session.get(self.server.url_of(f"/v1/orders/{order_id}/stream")) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            async for line in response.content:
                if line.startswith(b"data:"):
                    yield json.loads(line.removeprefix(b"data:"))

    async def wait_until_final(self, order_id: str) -> Any:
        """Follow the stream of an order to its final state; return the order."""
        order = [order async for order in self.stream(order_id)][-1]
        assert order["status"] in ("confirmed", "cancelled"), order
        return order

    async def cancel(self, order_id: str, reason: str | None = None) -> Any:
        """Cancel an order; return the order from the response."""
        reply = await self.request(
            "POST", f"/v1/orders/{order_id}/cancel", None if reason is None else {"reason": reason}
        )
        assert reply.status == 202, reply.text
        return reply.body

    async def wait_for_payment(self, order_id: str, status: str, seconds: float = 30.0) -> Any:
        """Wait until the payment of the order has *status*; return the payment."""

        async def payment() -> Any:
            return (await self.request("GET", f"/v1/payments/{order_id}")).body

        return await eventually(payment, lambda found: bool(found["status"] == status), seconds)

    async def list_all(self, path: str, limit: int = 200) -> list[Any]:
        """Return all items of the list at *path*, read page by page."""
        items: list[Any] = []
        cursor = ""
        separator = "&" if "?" in path else "?"
        while True:
            page = await self.get(f"{path}{separator}limit={limit}{cursor}")
            assert len(page["items"]) <= limit
            items += page["items"]
            if page["next_cursor"] is None:
                return items
            cursor = f"&cursor={page['next_cursor']}"


def _order(items: Mapping[str, int]) -> dict[str, Any]:
    lines = [{"product_id": product_id, "quantity": quantity} for product_id, quantity in items.items()]
    return {"customer_id": "c-1", "items": lines}
