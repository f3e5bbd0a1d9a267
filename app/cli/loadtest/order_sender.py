"""Send the orders: which connection sends which order at what time, and how it reacts to a rejection."""

from __future__ import annotations

__all__ = ["OrderSender", "Stop"]

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter

import orjson

from app.cli.loadtest.http_client import Connection
from app.cli.loadtest.order_tracker import OrderTracker
from app.cli.loadtest.report import Tally

FIRST_PAUSE_SECONDS = 0.05
LAST_PAUSE_SECONDS = 1.0


class Stop:
    """A flag that asks the run to end early and ends every coroutine's wait for it."""

    def __init__(self) -> None:
        self.is_set = False
        self._sleepers: set[asyncio.Future[None]] = set()

    def set(self) -> None:
        """Set the flag: wake every sleeper, and let every later `sleep` return at once."""
        self.is_set = True
        for sleeper in self._sleepers:
            _wake(sleeper)

    async def sleep(self, seconds: float) -> None:
        """Return when *seconds* have passed or the flag is set."""
        if self.is_set:
            return
        loop = asyncio.get_running_loop()
        sleeper: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake, sleeper)
        self._sleepers.add(sleeper)
        try:
            await sleeper
        finally:
            self._sleepers.discard(sleeper)
            timer.cancel()


class OrderSender:
    """
    Places orders over several connections, each with at most one POST in flight.

    Without a rate the loop is closed: each connection sends its next order when it has the response to the last one.
    With a rate the loop is open: order *i* is due at ``start + i / rate``, the next free connection sends it, and its
    time starts when it was due. This avoids coordinated omission: while a server stalls, a closed loop would not send,
    and so would not measure, the orders that the stall delays.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        request: Callable[[int], bytes],
        tracker: OrderTracker,
        tally: Tally,
        *,
        rate: float | None,
        patience_seconds: float,
        stop: Stop,
    ) -> None:
        self._connections = connections
        self._request = request
        self._tracker = tracker
        self._tally = tally
        self._rate = rate
        self._patience_seconds = patience_seconds
        self._stop = stop
        self._numbers = iter(range(tally.orders))
        self.failure: str | None = None
        """Why the sender gave up, or None."""

    async def run(self) -> None:
        """Place all orders, or fewer after a stop or a failure. On return no POST is in flight."""
        self._started_at = perf_counter()
        tasks = [asyncio.create_task(self._send_orders(connection)) for connection in self._connections]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_orders(self, connection: Connection) -> None:
        for number in self._numbers:
            due_at = None if self._rate is None else self._started_at + number / self._rate
            if due_at is not None and due_at > perf_counter():
                # The timer may fire up to half a millisecond early; `_place` then counts from when the order was really sent.
                await self._stop.sleep(due_at - perf_counter())
            if self._stop.is_set:
                return
            customer = self._tracker.customer(number)
            try:
                await self._place(connection, number, due_at)
            finally:
                customer.settle()

    async def _place(self, connection: Connection, number: int, due_at: float | None) -> None:
        customer = self._tracker.customer(number)
        request = self._request(number)
        began_at = perf_counter()
        sent_at = began_at if due_at is None else min(due_at, began_at)
        if self._tally.first_sent_at is None:
            self._tally.first_sent_at = sent_at
        pause = FIRST_PAUSE_SECONDS
        while not self._stop.is_set:
            try:
                response = await connection.send(request)
            except OSError as error:
                # The server may have accepted the order, and its id will never be known here: the stock check has to
                # account for it.
                customer.is_doubtful = True
                problem, wait = f"the connection failed: {error or type(error).__name__}", pause
                pause = min(2 * pause, LAST_PAUSE_SECONDS)
            else:
                if response.status == 202:
                    order_id = _order_id(response.body)
                    if order_id is None:
                        return self._give_up("the server answered 202 without an order_id")
                    self._tally.accept(sent_at, response.at)
                    return customer.wait_for(order_id, sent_at, response.at)
                if response.status not in (429, 503):
                    return self._give_up(f"the server answered {response.status}: {_excerpt(response.body)}")
                problem, wait = (
                    f"the server answered {response.status}: {_excerpt(response.body)}",
                    response.retry_after,
                )
            # Do not start a wait that would exceed the patience.
            if perf_counter() + wait - began_at > self._patience_seconds:
                return self._give_up(f"no order was accepted for {self._patience_seconds:g} s; last problem: {problem}")
            await self._stop.sleep(wait)

    def _give_up(self, failure: str) -> None:
        self.failure = self.failure or failure
        self._stop.set()


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


def _order_id(body: bytes) -> str | None:
    try:
        order_id = orjson.loads(body)["order_id"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return order_id if isinstance(order_id, str) else None


def _excerpt(body: bytes) -> str:
    return body[:200].decode(errors="replace")
