"""One run, from laying in the stock to counting it."""

from __future__ import annotations

__all__ = ["run_load_test"]

import asyncio
import secrets
from collections.abc import Callable
from time import perf_counter

import aiohttp
import orjson
from yarl import URL

from app.cli.http_client import credentials
from app.cli.loadtest.errors import Failed
from app.cli.loadtest.http_client import Connection, post
from app.cli.loadtest.order_sender import OrderSender, Stop
from app.cli.loadtest.order_tracker import OrderTracker
from app.cli.loadtest.report import Progress, Result, Tally
from app.cli.loadtest.stock import LOOK_SECONDS, Stock

TICK_SECONDS = 0.25
ANSWER_SECONDS = 30.0
STOCK_SECONDS = 30.0
ON_HAND_MIN = 1_000_000


async def run_load_test(
    url: str,
    orders: int,
    concurrency: int,
    rate: float | None = None,
    *,
    inventory_url: str | None = None,
    key: str | None = None,
    products: int = 20,
    patience_seconds: float = 60.0,
    progress: Callable[[Progress], None] | None = None,
    stop: Stop | None = None,
) -> Result:
    """
    Place *orders* orders at *url*, at most *concurrency* at once, follow them, and return what was measured.

    The stock is kept at *inventory_url*, or at *url* as well. Both are given the API key *key*, if there is one.

    Each order asks for one piece of one of *products* products, in turn. A 429 or 503 is repeated after its
    ``Retry-After``, a cut connection after a short pause, for up to *patience_seconds*; the order's time runs on
    meanwhile. No Idempotency-Key is sent, so a POST that was cut may have left an order behind that nobody counts; the
    stock is held against those as well. An order is lost when its 202 came in and it cannot be found, or has not
    ended, once nothing has ended for *patience_seconds*.

    The measured seconds run from the first POST to the latest order's end (`Tally` says how that is dated). They reach
    to the moment at which the stock was seen taken, if it was not yet at the first look after all orders had ended.

    *progress* is called about four times a second. Setting *stop* ends the placing; what was accepted is followed
    all the same.

    Raises:
        Unreachable: No server answered; nothing was placed.
        Failed: The server refused for good, stayed away, or its stock is not what was confirmed.
    """
    stop = stop or Stop()
    run_id = secrets.token_hex(4)
    base = URL(url)
    tally = Tally(orders)
    connections = [Connection(base) for _ in range(min(concurrency, orders))]

    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, headers=credentials(key)) as session:
        shelves = base if inventory_url is None else URL(inventory_url)
        stock = Stock(session, shelves, run_id, products=products, on_hand=max(ON_HAND_MIN, 2 * orders))
        following = OrderTracker(session, base, run_id, tally, patience_seconds=patience_seconds)
        target = base / "v1" / "orders"

        def request(number: int) -> bytes:
            items = [{"product_id": stock.product_ids[number % products], "quantity": 1}]
            return post(target, orjson.dumps({"customer_id": following.customer_id(number), "items": items}), key)

        async def tick() -> None:
            while True:
                await asyncio.sleep(TICK_SECONDS)
                for connection in connections:
                    connection.cut_if_older(ANSWER_SECONDS)
                if progress is not None:
                    progress(tally.progress(perf_counter()))

        placing = OrderSender(
            connections, request, following, tally, rate=rate, patience_seconds=patience_seconds, stop=stop
        )
        await stock.create(patience_seconds=patience_seconds, stop=stop)
        follower, ticker = asyncio.create_task(following.run()), asyncio.create_task(tick())
        try:
            await placing.run()
            following.close_input()
            await follower
            # With an order lost nobody can say what the stock should be; with none accepted there is nothing to say.
            is_countable = tally.accepted > 0 and tally.lost == 0
            differences = await _count(stock, following, tally, patience_seconds) if is_countable else []
        finally:
            for task in (follower, ticker):
                task.cancel()
            await asyncio.gather(follower, ticker, return_exceptions=True)
            for connection in connections:
                connection.close()

    if progress is not None:
        progress(tally.progress(perf_counter()))
    result = tally.result()
    troubles = (placing.trouble, following.trouble if tally.lost else None, *differences)
    if any(troubles):
        raise Failed("; ".join(filter(None, troubles)), result)
    return result


async def _count(stock: Stock, following: OrderTracker, tally: Tally, patience_seconds: float) -> list[str]:
    """Wait until the books are right, and say where they are not when patience ends."""
    until = perf_counter() + min(patience_seconds, STOCK_SECONDS)
    looks = 0
    while differences := await stock.differences(following.sold):
        if perf_counter() > until:
            return differences
        looks += 1
        await asyncio.sleep(LOOK_SECONDS)
        await following.look_again()
    if looks:
        tally.stock_taken_at = perf_counter()
    return []
