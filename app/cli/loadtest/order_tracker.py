"""
Follow the orders to their final state, at a cost of a few hundredths of a request per order.

Orders are spread over customers of `PAGE` orders, so the complete list of one customer is one page. The tracker polls a
customer shortly after its last order is placed, and again at growing intervals until all its orders have ended; most
orders are fetched once or twice. After a poll that found an ended order the tracker pauses: for as long as the poll
took, or, while orders are still being sent, `SENDING_PAUSE_FACTOR` times as long, because the server under test should
spend its time on orders and not on polls. The tracker catches up after the last order is sent. The moment at which it
learns of an end does not enter any figure.
"""

from __future__ import annotations

__all__ = ["PAGE", "Customer", "OrderTracker"]

import asyncio
from collections import Counter
from contextlib import suppress
from datetime import datetime
from time import perf_counter
from typing import Any

import aiohttp
import orjson
from attrs import Factory, define
from yarl import URL

from app.cli.loadtest.report import Tally

PAGE = 50
"""Orders per customer. The API lists up to 200 at once, but a long list delays the other requests of the server."""

FIRST_POLL_SECONDS = 0.25
OPEN_POLL_SECONDS = 2.0
LAST_PAUSE_SECONDS = 2.0
TICK_SECONDS = 0.05

SENDING_PAUSE_FACTOR = 20
"""Every poll slows down the placing of orders: polling half of the time cost a fourteenth of the orders per second."""

Json = Any


@define(eq=False)
class Customer:
    """Up to `PAGE` orders that one poll can fetch."""

    id: str
    slots: int
    """Orders still to be placed for this customer; at 0 its list is complete."""
    poll_at: float
    pause_seconds: float = FIRST_POLL_SECONDS
    waiting: dict[str, tuple[float, float]] = Factory(dict)
    """Accepted orders that are not known to have ended: when each was sent, and when its 202 arrived."""
    ended: set[str] = Factory(set)
    duplicates: int = 0
    """202 responses with the id of an order that was already accepted."""
    is_doubtful: bool = False
    """True after a POST without a response: the server may have accepted orders whose ids are not known here."""

    @property
    def is_complete(self) -> bool:
        """True once no further order will be placed for this customer."""
        return self.slots == 0

    def settle(self, slots: int = 1) -> None:
        """Count *slots* orders as placed or given up; schedule a poll soon once the list is complete."""
        self.slots -= slots
        if self.is_complete:
            self.poll_at = min(self.poll_at, perf_counter() + FIRST_POLL_SECONDS)

    def wait_for(self, order_id: str, sent_at: float, answered_at: float) -> None:
        """Wait for the final state of the order *order_id*."""
        if order_id in self.waiting or order_id in self.ended:
            self.duplicates += 1
        else:
            self.waiting[order_id] = (sent_at, answered_at)


class OrderTracker:
    """Polls the server until every accepted order has ended; counts what the confirmed orders took from the stock."""

    def __init__(
        self, session: aiohttp.ClientSession, url: URL, run_id: str, tally: Tally, *, patience_seconds: float
    ) -> None:
        self._session = session
        self._orders_url = url / "v1" / "orders"
        self._run_id = run_id
        self._tally = tally
        self._patience_seconds = patience_seconds
        self._customers: dict[int, Customer] = {}
        self._doubtful: list[Customer] = []
        self._closed_at: float | None = None
        self._closed = asyncio.Event()
        self._progressed_at = 0.0
        self.sold: Counter[str] = Counter()
        """Confirmed quantity by product id, including orders whose 202 never arrived."""
        self.last_error: str | None = None
        """Why the last poll failed, or None."""

    def customer_id(self, number: int) -> str:
        """Return the id of the customer of order *number*; all ids have the same length."""
        return f"load-{self._run_id}-{number // PAGE:08d}"

    def customer(self, number: int) -> Customer:
        """Return the customer of order *number*; start to poll it at the first call."""
        index = number // PAGE
        customer = self._customers.get(index)
        if customer is None:
            poll_at = perf_counter() + OPEN_POLL_SECONDS
            customer = Customer(
                id=self.customer_id(number), slots=min(PAGE, self._tally.orders - index * PAGE), poll_at=poll_at
            )
            self._customers[index] = customer
        return customer

    def close_input(self) -> None:
        """Announce that all orders are sent. Patience runs from now, or from the last end that is seen later."""
        self._closed_at = perf_counter()
        self._closed.set()
        for customer in self._customers.values():
            customer.settle(customer.slots)

    async def run(self) -> None:
        """Poll until every accepted order has ended, or none has for as long as the patience lasts; count the lost orders."""
        while self._closed_at is None or self._customers:
            now = perf_counter()
            if self._closed_at is not None and now - max(self._closed_at, self._progressed_at) > self._patience_seconds:
                await self._poll_all()
                break
            index = next((index for index, customer in self._customers.items() if customer.poll_at <= now), None)
            if index is None:
                await asyncio.sleep(TICK_SECONDS)
                continue
            ended = await self._step(index, self._customers[index])
            if ended:
                await self._pause(max(perf_counter() - now, TICK_SECONDS / 10))
            else:
                await asyncio.sleep(FIRST_POLL_SECONDS)
        self._tally.lost += sum(len(customer.waiting) + customer.duplicates for customer in self._customers.values())

    async def _pause(self, seconds: float) -> None:
        """Pause after a poll that took *seconds*; end the pause early when the last order is sent."""
        if self._closed.is_set():
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(SENDING_PAUSE_FACTOR * seconds):
                await self._closed.wait()

    async def poll_doubtful(self) -> None:
        """Poll the doubtful customers again: the server may have accepted a POST without a response only now."""
        for customer in self._doubtful:
            await self._poll(customer)

    async def _step(self, index: int, customer: Customer) -> int:
        is_complete = customer.is_complete
        ended, has_open = await self._poll(customer)
        if is_complete and not customer.waiting and not has_open:
            del self._customers[index]
            self._tally.lost += customer.duplicates
            if customer.is_doubtful:
                self._doubtful.append(customer)
        elif is_complete:
            customer.poll_at = perf_counter() + customer.pause_seconds
            customer.pause_seconds = min(2 * customer.pause_seconds, LAST_PAUSE_SECONDS)
        else:
            customer.poll_at = perf_counter() + OPEN_POLL_SECONDS
        if ended:
            self._progressed_at = perf_counter()
        return ended

    async def _poll_all(self) -> None:
        # An order must not count as lost because its customer was not polled for a while: poll each once more.
        for index, customer in list(self._customers.items()):
            await self._step(index, customer)

    async def _poll(self, customer: Customer) -> tuple[int, bool]:
        """Fetch the orders of *customer*; return how many have ended since the last poll, and whether some are still open."""
        is_complete = customer.is_complete
        unseen = set(customer.waiting)
        ended, has_open, cursor = 0, False, None
        while True:
            try:
                page = await self._page(customer.id, cursor)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                self.last_error = f"GET {self._orders_url.path}: {error or type(error).__name__}"
                return ended, True
            self.last_error = None
            for order in page["items"]:
                unseen.discard(order["order_id"])
                if order["status"] in ("confirmed", "cancelled"):
                    ended += self._end(customer, order, is_complete=is_complete)
                else:
                    has_open = True
            cursor = page["next_cursor"]
            if cursor is None or not (unseen or customer.is_doubtful):
                return ended, has_open

    def _end(self, customer: Customer, order: Json, *, is_complete: bool) -> int:
        order_id: str = order["order_id"]
        times = customer.waiting.pop(order_id, None)
        if order_id in customer.ended or (times is None and not is_complete):
            return 0  # counted already, or the 202 has not arrived yet
        customer.ended.add(order_id)
        is_confirmed = order["status"] == "confirmed"
        if is_confirmed:
            for item in order["items"]:
                self.sold[item["product_id"]] += item["quantity"]
        if times is not None:
            sent_at, answered_at = times
            seconds = _seconds_to_end(order)
            self._tally.end(is_confirmed=is_confirmed, sent_at=sent_at, answered_at=answered_at, seconds=seconds)
        return 1

    async def _page(self, customer_id: str, cursor: str | None) -> Json:
        query = {"customer_id": customer_id, "limit": str(PAGE)} | ({"cursor": cursor} if cursor else {})
        async with self._session.get(self._orders_url, params=query) as response:
            body = await response.read()
            if response.status != 200:
                raise ValueError(f"the server answered {response.status}")
            return orjson.loads(body)


def _seconds_to_end(order: Json) -> float:
    """Return the seconds from the creation of *order* to its end, by the server's clock."""
    event = f"orders.{order['status']}"
    # updated_at is the fallback only: later changes, such as a refund, move it.
    at = next((entry["at"] for entry in reversed(order["timeline"]) if entry["event"] == event), order["updated_at"])
    return (datetime.fromisoformat(at) - datetime.fromisoformat(order["created_at"])).total_seconds()
