"""Placing the orders: who sends which one when, and what a refusal means."""

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
    """A wish to end early, which wakes everyone who sleeps on it."""

    def __init__(self) -> None:
        self.is_set = False
        self._sleepers: set[asyncio.Future[None]] = set()

    def set(self) -> None:
        """Wake every sleeper, now and from now on."""
        self.is_set = True
        for sleeper in self._sleepers:
            _wake(sleeper)

    async def sleep(self, seconds: float) -> None:
        """Return when *seconds* have passed or a stop is wished for."""
        if self.is_set:
            return
        loop = asyncio.get_running_loop()
        sleeper: asyncio.Future[None] = loop.create_future()
        alarm = loop.call_later(seconds, _wake, sleeper)
        self._sleepers.add(sleeper)
        try:
            await sleeper
        finally:
            self._sleepers.discard(sleeper)
            alarm.cancel()


class OrderSender:
    """
    Place orders over some connections, each of which has one POST in flight at most.

    Without a rate the loop is closed: each connection sends its next order when it has the answer to the last. With
    one it is open: order *i* is due at ``start + i / rate``, whichever connection is free takes it, and its time runs
    from when it was due, so that a server that stalls cannot make the generator wait politely and leave out the very
    orders that would have suffered.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        request: Callable[[int], bytes],
        following: OrderTracker,
        tally: Tally,
        *,
        rate: float | None,
        patience_seconds: float,
        stop: Stop,
    ) -> None:
        self._connections = connections
        self._request = request
        self._following = following
        self._tally = tally
        self._rate = rate
        self._patience_seconds = patience_seconds
        self._stop = stop
        self._numbers = iter(range(tally.orders))
        self.trouble: str | None = None
        """Why placing was given up, if it was."""

    async def run(self) -> None:
        """Place all orders, or fewer on a stop or when there is no hope; every POST is answered or cut on return."""
        self._started_at = perf_counter()
        tasks = [asyncio.create_task(self._work(connection)) for connection in self._connections]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, connection: Connection) -> None:
        for number in self._numbers:
            due_at = None if self._rate is None else self._started_at + number / self._rate
            if due_at is not None and due_at > perf_counter():
                # The timer may ring half a millisecond early; the order then counts from when it was really sent.
                await self._stop.sleep(due_at - perf_counter())
            if self._stop.is_set:
                return
            customer = self._following.customer(number)
            try:
                await self._place(connection, number, due_at)
            finally:
                customer.settle()

    async def _place(self, connection: Connection, number: int, due_at: float | None) -> None:
        customer = self._following.customer(number)
        request = self._request(number)
        began_at = perf_counter()
        sent_at = began_at if due_at is None else min(due_at, began_at)
        if self._tally.first_sent_at is None:
            self._tally.first_sent_at = sent_at
        pause = FIRST_PAUSE_SECONDS
        while not self._stop.is_set:
            try:
                answer = await connection.ask(request)
            except OSError as error:
                # It may have been accepted, and nobody will ever tell us its id: the stock has to account for it.
                customer.is_doubtful = True
                trouble, wait = f"the connection failed: {error or type(error).__name__}", pause
                pause = min(2 * pause, LAST_PAUSE_SECONDS)
            else:
                if answer.status == 202:
                    order_id = _order_id(answer.body)
                    if order_id is None:
                        return self._give_up("the server accepted an order without saying its order_id")
                    self._tally.accept(sent_at, answer.at)
                    return customer.wait_for(order_id, sent_at, answer.at)
                if answer.status not in (429, 503):
                    return self._give_up(f"the server answered {answer.status}: {_excerpt(answer.body)}")
                trouble, wait = f"the server answered {answer.status}: {_excerpt(answer.body)}", answer.retry_after
            # A wait that would outlast patience is not begun.
            if perf_counter() + wait - began_at > self._patience_seconds:
                return self._give_up(f"no order was taken for {self._patience_seconds:g} s; at last {trouble}")
            await self._stop.sleep(wait)

    def _give_up(self, trouble: str) -> None:
        self.trouble = self.trouble or trouble
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
