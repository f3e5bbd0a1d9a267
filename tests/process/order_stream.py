"""A client of the stream of all orders, which connects again as a browser does."""

from __future__ import annotations

__all__ = ["OrderStream"]

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import aiohttp
from attrs import define, field


@define
class OrderStream:
    """
    Follows the stream at the address that *url* returns, and connects again with the id of its last event.

    *seen* has the latest state of each order, by id.
    """

    url: Callable[[], str]
    seen: dict[str, Any] = field(factory=dict, init=False)
    connections: int = field(default=0, init=False)
    _last_id: str = field(default="", init=False)
    _changed: asyncio.Event = field(factory=asyncio.Event, init=False)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[Self]:
        """Follow it as long as the context lasts; enter returns once the stream is open."""
        task = asyncio.create_task(self._follow())
        await self.until(lambda: bool(self._last_id))
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait until *condition* holds after an event."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_final(self, order_ids: Collection[str], seconds: float = 30.0) -> None:
        """Wait until it has seen the final state of each of *order_ids*."""
        final = "confirmed", "cancelled"
        await self.until(lambda: all(id in self.seen and self.seen[id]["status"] in final for id in order_ids), seconds)

    async def _follow(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
            while True:
                headers = {"Last-Event-ID": self._last_id} if self._last_id else {}
                with suppress(aiohttp.ClientError, ConnectionError):
                    async with session.get(self.url(), headers=headers) as response:
                        assert response.status == 200, await response.text()
                        self.connections += 1
                        async for line in response.content:
                            self._take(*line.decode().rstrip("\r\n").partition(": ")[::2])
                await asyncio.sleep(0.05)  # a browser waits, too

    def _take(self, name: str, value: str) -> None:
        if name == "id":
            self._last_id = value
        elif name == "data":
            order = json.loads(value)
            self.seen[order["order_id"]] = order
        self._changed.set()
