"""
Following the orders to their end, at a few hundredths of a request each.

Orders are spread over customers of `PAGE` orders, so that the whole list of one customer is one page. A page is asked
for when its customer has all its orders, a moment later, and again at growing intervals until all of them have ended:
mostly each order is fetched once or twice. After a page on which something had ended the follower rests: for as long as
the page took, and while orders are still being placed for `PLACING_REST` times as long, for a server under test should be
busy with orders and not with our questions about them. What is left then is caught up with afterwards. How late it learns
of an end does not enter any number.
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
"""The API lists up to 200 at once; a long list would hold up whoever asks for something else meanwhile."""

FIRST_LOOK_SECONDS = 0.25
OPEN_LOOK_SECONDS = 2.0
LAST_PAUSE_SECONDS = 2.0
TICK_SECONDS = 0.05

PLACING_REST = 20
"""Each list holds up those who place: asking half the time cost a fourteenth of the orders a second."""

Json = Any


@define(eq=False)
class Customer:
    """Up to `PAGE` orders that one look can show."""

    id: str
    slots: int
    """Orders still to be placed for it; at 0 the list is whole."""
    look_at: float
    pause_seconds: float = FIRST_LOOK_SECONDS
    waiting: dict[str, tuple[float, float]] = Factory(dict)
    """Accepted orders whose end is not known: when each was sent, and when its 202 came in."""
    ended: set[str] = Factory(set)
    twice: int = 0
    """202s that gave the id of another order."""
    is_doubtful: bool = False
    """True when a POST for it was cut: the server may know of orders that we do not."""

    @property
    def is_whole(self) -> bool:
        """True once no further order will be placed for it."""
        return self.slots == 0

    def settle(self, slots: int = 1) -> None:
        """Take *slots* off: so many of its orders were placed, or given up. A whole list is soon looked at."""
        self.slots -= slots
        if self.is_whole:
            self.look_at = min(self.look_at, perf_counter() + FIRST_LOOK_SECONDS)

    def wait_for(self, order_id: str, sent_at: float, answered_at: float) -> None:
        """Expect an end of the order *order_id*."""
        if order_id in self.waiting or order_id in self.ended:
            self.twice += 1
        else:
            self.waiting[order_id] = (sent_at, answered_at)


class OrderTracker:
    """Learn what became of every order, cheaply, and what it took from the stock."""

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
        self._placed_at: float | None = None
        self._is_placed = asyncio.Event()
        self._progressed_at = 0.0
        self.sold: Counter[str] = Counter()
        """Quantities by product that confirmed orders have taken, also those whose 202 never came in."""
        self.trouble: str | None = None
        """Why the last look failed, if it did."""

    def customer_id(self, number: int) -> str:
        """Return the id of the customer of order *number*; all are equally long."""
        return f"load-{self._run_id}-{number // PAGE:08d}"

    def customer(self, number: int) -> Customer:
        """Return the customer of order *number*, to be followed from now on."""
        index = number // PAGE
        customer = self._customers.get(index)
        if customer is None:
            look_at = perf_counter() + OPEN_LOOK_SECONDS
            customer = Customer(
                id=self.customer_id(number), slots=min(PAGE, self._tally.orders - index * PAGE), look_at=look_at
            )
            self._customers[index] = customer
        return customer

    def close_input(self) -> None:
        """Say that placing is over: patience runs from here, or from the last end seen after it."""
        self._placed_at = perf_counter()
        self._is_placed.set()
        for customer in self._customers.values():
            customer.settle(customer.slots)

    async def run(self) -> None:
        """Look until every accepted order has ended, or nothing has for as long as patience lasts; count the lost."""
        while self._placed_at is None or self._customers:
            now = perf_counter()
            if self._placed_at is not None and now - max(self._placed_at, self._progressed_at) > self._patience_seconds:
                await self._look_at_all()
                break
            index = next((index for index, customer in self._customers.items() if customer.look_at <= now), None)
            if index is None:
                await asyncio.sleep(TICK_SECONDS)
                continue
            news = await self._step(index, self._customers[index])
            if news:
                await self._rest(max(perf_counter() - now, TICK_SECONDS / 10))
            else:
                await asyncio.sleep(FIRST_LOOK_SECONDS)
        self._tally.lost += sum(len(customer.waiting) + customer.twice for customer in self._customers.values())

    async def _rest(self, seconds: float) -> None:
        """Rest after a look that took *seconds*; not beyond the end of placing."""
        if self._is_placed.is_set():
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(PLACING_REST * seconds):
                await self._is_placed.wait()

    async def look_again(self) -> None:
        """Look once more at the doubtful customers: a POST that was cut may have been accepted only now."""
        for customer in self._doubtful:
            await self._look(customer)

    async def _step(self, index: int, customer: Customer) -> int:
        is_whole = customer.is_whole
        news, has_more = await self._look(customer)
        if is_whole and not customer.waiting and not has_more:
            del self._customers[index]
            self._tally.lost += customer.twice
            if customer.is_doubtful:
                self._doubtful.append(customer)
        elif is_whole:
            customer.look_at = perf_counter() + customer.pause_seconds
            customer.pause_seconds = min(2 * customer.pause_seconds, LAST_PAUSE_SECONDS)
        else:
            customer.look_at = perf_counter() + OPEN_LOOK_SECONDS
        if news:
            self._progressed_at = perf_counter()
        return news

    async def _look_at_all(self) -> None:
        # Pacing must not make anything look lost: whoever had no turn for a while gets one before the verdict.
        for index, customer in list(self._customers.items()):
            await self._step(index, customer)

    async def _look(self, customer: Customer) -> tuple[int, bool]:
        """Return how many orders are newly known to have ended, and whether some are known not to have."""
        is_whole = customer.is_whole
        unseen = set(customer.waiting)
        news, has_more, cursor = 0, False, None
        while True:
            try:
                page = await self._page(customer.id, cursor)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                self.trouble = f"GET {self._orders_url.path}: {error or type(error).__name__}"
                return news, True
            self.trouble = None
            for order in page["items"]:
                unseen.discard(order["order_id"])
                if order["status"] in ("confirmed", "cancelled"):
                    news += self._end(customer, order, is_whole=is_whole)
                else:
                    has_more = True
            cursor = page["next_cursor"]
            if cursor is None or not (unseen or customer.is_doubtful):
                return news, has_more

    def _end(self, customer: Customer, order: Json, *, is_whole: bool) -> int:
        order_id: str = order["order_id"]
        moments = customer.waiting.pop(order_id, None)
        if order_id in customer.ended or (moments is None and not is_whole):
            return 0  # known already, or its 202 is still on the way
        customer.ended.add(order_id)
        is_confirmed = order["status"] == "confirmed"
        if is_confirmed:
            for item in order["items"]:
                self.sold[item["product_id"]] += item["quantity"]
        if moments is not None:
            sent_at, answered_at = moments
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
    """Return the time from created to ended, by the server's clock."""
    event = f"orders.{order['status']}"
    # updated_at is second best: it also moves with later news, such as a refund.
    at = next((entry["at"] for entry in reversed(order["timeline"]) if entry["event"] == event), order["updated_at"])
    return (datetime.fromisoformat(at) - datetime.fromisoformat(order["created_at"])).total_seconds()
