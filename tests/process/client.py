"""A client that is told the truth: statuses, headers and bodies as they came."""

from __future__ import annotations

__all__ = ["LOST", "Answering", "Client", "Reply", "eventually"]

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
from attrs import frozen
from multidict import CIMultiDictProxy

T = TypeVar("T")

LOST = (aiohttp.ClientError, ConnectionError, TimeoutError)
"""What a request raises whose answer did not come."""


@frozen
class Reply:
    """An answer; *body* is its JSON, or None where it has none."""

    status: int
    headers: CIMultiDictProxy[str]
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text) if self.text else None


async def eventually(ask: Callable[[], Awaitable[T]], is_so: Callable[[T], bool], seconds: float = 30.0) -> T:
    """Ask until the answer *is_so*; fail with the last answer when *seconds* are over."""
    deadline = time.monotonic() + seconds
    while not is_so(answer := await ask()):
        assert time.monotonic() < deadline, f"still so after {seconds:g} s: {answer}"
        await asyncio.sleep(0.02)  # another process has no other way to be waited for
    return answer


class Answering(Protocol):
    """What a client speaks to: one server, or several that share the paths among them."""

    def url_of(self, path: str) -> str:
        """Return where *path* is answered at present."""

    def database_of(self, module: str) -> Path | str:
        """Return the database that *module* keeps."""


class Client:
    """Speak HTTP to *server*, wherever it answers at present."""

    def __init__(self, server: Answering) -> None:
        self.server = server
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=60), connector=aiohttp.TCPConnector(limit=0)
        )

    async def close(self) -> None:
        """Hang up."""
        await self._session.close()

    async def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, **more: Any
    ) -> Reply:
        """Make one request; *body* goes out as JSON."""
        if body is not None:
            more["json"] = body
        return await self.call(self.server.url_of(path), method, headers=headers, **more)

    async def call(self, url: str, method: str = "GET", **more: Any) -> Reply:
        """Make one request to *url*, whoever answers there."""
        async with self._session.request(method, url, **more) as answer:
            return Reply(answer.status, answer.headers, await answer.text())

    async def get(self, path: str, status: int = 200, **headers: str) -> Any:
        """Return the JSON at *path*, which must answer with *status*."""
        reply = await self.ask("GET", path, headers=headers)
        assert reply.status == status, f"GET {path}: {reply.status} {reply.text}"
        return reply.body

    async def stock(self, product_id: str, on_hand: int, amount: int = 100, currency: str = "EUR") -> Any:
        """Set a product; return it."""
        body = {"on_hand": on_hand, "unit_price": {"amount": amount, "currency": currency}}
        reply = await self.ask("PUT", f"/v1/inventory/{product_id}", body)
        assert reply.status == 200, reply.text
        return reply.body

    async def post(self, items: Mapping[str, int], key: str | None = None, **more: Any) -> Reply:
        """Place an order for *items*, quantities by product."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self.ask("POST", "/v1/orders", _order(items) | more, headers)

    async def place(self, items: Mapping[str, int], key: str | None = None, **more: Any) -> str:
        """Place an order that must be accepted; return its id."""
        reply = await self.post(items, key, **more)
        assert reply.status == 202, reply.text
        order_id: str = reply.body["order_id"]
        return order_id

    async def stream(self, order_id: str) -> AsyncIterator[Any]:
        """Yield the order after each change, as the server-sent events bring it, until they end."""
        async with self._session.get(self.server.url_of(f"/v1/orders/{order_id}/stream")) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.content_type == "text/event-stream"
            async for line in answer.content:
                if line.startswith(b"data:"):
                    yield json.loads(line.removeprefix(b"data:"))

    async def followed(self, order_id: str) -> Any:
        """Follow an order to its end; return it as it is then."""
        order = [order async for order in self.stream(order_id)][-1]
        assert order["status"] in ("confirmed", "cancelled"), order
        return order

    async def cancel(self, order_id: str, reason: str | None = None) -> Any:
        """Cancel an order; return it as the answer shows it."""
        reply = await self.ask("POST", f"/v1/orders/{order_id}/cancel", None if reason is None else {"reason": reason})
        assert reply.status == 202, reply.text
        return reply.body

    async def payment_once(self, order_id: str, status: str, seconds: float = 30.0) -> Any:
        """Wait until the order's payment has *status*; return it."""

        async def ask() -> Any:
            return (await self.ask("GET", f"/v1/payments/{order_id}")).body

        return await eventually(ask, lambda payment: bool(payment["status"] == status), seconds)

    async def everything(self, path: str, limit: int = 200) -> list[Any]:
        """Return all items of the list at *path*, page by page."""
        found: list[Any] = []
        cursor = ""
        glue = "&" if "?" in path else "?"
        while True:
            page = await self.get(f"{path}{glue}limit={limit}{cursor}")
            assert len(page["items"]) <= limit
            found += page["items"]
            if page["next_cursor"] is None:
                return found
            cursor = f"&cursor={page['next_cursor']}"


def _order(items: Mapping[str, int]) -> dict[str, Any]:
    lines = [{"product_id": product_id, "quantity": quantity} for product_id, quantity in items.items()]
    return {"customer_id": "c-1", "items": lines}
