"""One load test: create the products, place and follow the orders, check the stock."""

from __future__ import annotations

__all__ = ["LoadOptions", "LoadRun", "run_load_test"]

import asyncio
import secrets
from collections.abc import Callable, Sequence
from time import perf_counter

import aiohttp
import orjson
from attrs import frozen
from yarl import URL

from app.cli.http_client import credentials
from app.cli.loadtest.errors import Failed
from app.cli.loadtest.http_client import Connection, post
from app.cli.loadtest.order_sender import OrderSender, Stop
from app.cli.loadtest.order_tracker import OrderTracker
from app.cli.loadtest.report import Progress, Result, Tally
from app.cli.loadtest.stock import CHECK_INTERVAL_SECONDS, Stock

TICK_SECONDS = 0.25
RESPONSE_SECONDS_MAX = 30.0
STOCK_SECONDS_MAX = 30.0
ON_HAND_MIN = 1_000_000


@frozen
class LoadOptions:
    """What a load test does, and against which server."""

    url: str
    orders: int
    concurrency: int
    """The number of connections, and so the highest number of POSTs in flight."""
    rate: float | None = None
    """Orders per second; None sends each order as soon as a connection is free."""
    inventory_url: str | None = None
    """The server that runs the inventory module; None if it is the server at *url*."""
    replica_urls: Sequence[str] = ()
    """Further servers that take the orders of the server at *url*; the connections are spread over all of them."""
    key: str | None = None
    """The API key that both servers are given, if any."""
    products: int = 20
    patience_seconds: float = 60.0


async def run_load_test(
    options: LoadOptions, *, progress: Callable[[Progress], None] | None = None, stop: Stop | None = None
) -> Result:
    """
    Place the orders, follow each to its final state, check the stock, and return the figures.

    Each order contains one piece of one product; the products take turns. A 429 or 503 is repeated after its
    ``Retry-After``, a POST without a response after a short pause, for up to *patience_seconds*; meanwhile the time of
    the order runs on. No Idempotency-Key is sent, so a POST without a response may leave an order behind that is not
    counted as accepted; the stock check includes such orders. An order is lost if its 202 arrived but the order cannot
    be found, or has not ended, once no order has ended for *patience_seconds*.

    The measured seconds run from the first POST to the latest end of an order (`Tally` explains how that is dated). If
    the stock does not match at the first check after all orders have ended, they run to the check at which it does.

    *progress* is called about four times a second. Setting *stop* ends the sending; the accepted orders are still
    followed.

    Raises:
        Unreachable: No server answered; no order was placed.
        Failed: The server rejected an order permanently, was out of reach for too long, or its stock does not match.
    """
    timeout = aiohttp.ClientTimeout(total=RESPONSE_SECONDS_MAX)
    async with aiohttp.ClientSession(timeout=timeout, headers=credentials(options.key)) as session:
        run = LoadRun(options, session, progress, Stop() if stop is None else stop)
        await run.prepare()
        try:
            await run.execute()
            return await run.verify()
        finally:
            await run.close()


class LoadRun:
    """One run of a load test; call `prepare`, `execute`, `verify` and `close` once each, in this order."""

    def __init__(
        self,
        options: LoadOptions,
        session: aiohttp.ClientSession,
        progress: Callable[[Progress], None] | None,
        stop: Stop,
    ) -> None:
        run_id = secrets.token_hex(4)
        url = URL(options.url)
        stock_url = url if options.inventory_url is None else URL(options.inventory_url)
        on_hand = max(ON_HAND_MIN, 2 * options.orders)
        self._options = options
        self._progress = progress
        self._stop = stop
        self._target = url / "v1" / "orders"
        self._tally = Tally(options.orders)
        self._stock = Stock(session, stock_url, run_id, products=options.products, on_hand=on_hand)
        self._tracker = OrderTracker(session, url, run_id, self._tally, patience_seconds=options.patience_seconds)
        urls = [url, *map(URL, options.replica_urls)]
        self._connections = [Connection(urls[n % len(urls)]) for n in range(min(options.concurrency, options.orders))]
        self._sender = OrderSender(
            self._connections,
            self._request,
            self._tracker,
            self._tally,
            rate=options.rate,
            patience_seconds=options.patience_seconds,
            stop=stop,
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def prepare(self) -> None:
        """
        Create the products with their stock.

        Raises:
            Unreachable: The server does not answer, or is not ready for longer than *patience_seconds*.
            Failed: The server rejected a product.
        """
        await self._stock.create(patience_seconds=self._options.patience_seconds, stop=self._stop)

    async def execute(self) -> None:
        """Send the orders and follow them until all have ended or some are lost."""
        tracking = asyncio.create_task(self._tracker.run())
        self._tasks = [tracking, asyncio.create_task(self._tick())]
        await self._sender.run()
        self._tracker.close_input()
        await tracking

    async def verify(self) -> Result:
        """
        Check the stock against the confirmed orders and return the figures of the run.

        Raises:
            Failed: The server rejected an order permanently or was out of reach for too long, or its stock does not match.
        """
        # A lost order makes the expected stock unknown; without an accepted order there is nothing to check.
        is_checkable = self._tally.accepted > 0 and self._tally.lost == 0
        differences = await self._stock_differences() if is_checkable else []
        self._report_progress()
        result = self._tally.result()
        poll_error = self._tracker.last_error if self._tally.lost else None
        if failures := [text for text in (self._sender.failure, poll_error, *differences) if text]:
            raise Failed("; ".join(failures), result)
        return result

    async def close(self) -> None:
        """Cancel the running tasks and close the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections:
            connection.close()

    def _request(self, number: int) -> bytes:
        product_id = self._stock.product_ids[number % self._options.products]
        items = [{"product_id": product_id, "quantity": 1}]
        body = orjson.dumps({"customer_id": self._tracker.customer_id(number), "items": items})
        return post(self._target, body, self._options.key)

    async def _tick(self) -> None:
        """Cut the connections that wait too long for a response, and report the progress."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for connection in self._connections:
                connection.cut_if_older(RESPONSE_SECONDS_MAX)
            self._report_progress()

    def _report_progress(self) -> None:
        if self._progress is not None:
            self._progress(self._tally.progress(perf_counter()))

    async def _stock_differences(self) -> list[str]:
        """Check the stock until it matches; return the differences that remain when the patience is over."""
        until = perf_counter() + min(self._options.patience_seconds, STOCK_SECONDS_MAX)
        is_first_check = True
        while differences := await self._stock.differences(self._tracker.sold):
            if perf_counter() > until:
                return differences
            is_first_check = False
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)
            await self._tracker.poll_doubtful()
        if not is_first_check:
            self._tally.stock_taken_at = perf_counter()
        return []
