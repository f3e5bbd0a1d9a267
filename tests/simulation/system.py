"""
The whole house in a time of its own, and the moment at which it is killed.

Nothing here waits for a real clock, a thread or a network: time is turned by hand, what a thread would do is done at once,
and the provider is an object. So everything that happens follows from one number, and what went wrong once goes wrong
again.

A life ends at a point of the `Fuse`: before or after any begin, commit or read of the database, or any word with the
provider. Whatever the process had in its memory is gone then; the file, the provider and the clients stay.
"""

from __future__ import annotations

__all__ = ["Bank", "Fuse", "Killed", "life"]

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from attrs import define, field

from app.gateways.circuit_breaker import CircuitBreaker
from app.gateways.payment_worker import CONSUMER, PaymentWorker
from app.gateways.port import Captured, ChargeResult, Declined, GatewayNotReached, GatewayTimeout
from app.messaging.consumers import EXPRESS_LANE, subscriptions
from app.storage.sql.executors import LoopExecutor
from modules.values import Money
from tests.clock import VirtualClock
from tests.runtime.harness import Harness, harness_at

T = TypeVar("T")


class Killed(BaseException):
    """The process is gone; nobody in it hears of that, so nobody catches it."""


@define
class Fuse:
    """What ends a life: at the *left*-th point from now, or never."""

    left: int | None = None
    is_burnt: bool = False
    points: int = 0

    def point(self) -> None:
        """
        Go on, unless life ends here.

        Raises:
            Killed: It does, or has ended already.
        """
        self.points += 1
        if self.left is not None and not self.is_burnt:
            self.left -= 1
            self.is_burnt = self.left < 0
        if self.is_burnt:
            raise Killed


class _AtOnce(Executor):
    """Does what a thread would do when it is asked to, between two points of *fuse*; *disk* says when a commit fails."""

    def __init__(self, fuse: Fuse, disk: Callable[[], bool] = lambda: False) -> None:
        self._fuse = fuse
        self._is_full = disk

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            self._fuse.point()
            if getattr(fn, "__name__", "") == "commit" and self._is_full():
                raise sqlite3.OperationalError("database or disk is full")
            done = fn(*args, **kwargs)
            self._fuse.point()
            future.set_result(done)
        except BaseException as error:
            future.set_exception(error)
        return future


@define
class Bank:
    """
    A provider that outlives us and knows no idempotency keys: each charge that arrives takes money.

    A share *trouble* of all calls fails, half of them after they have done what they were asked for. What is more than
    *limit* is declined.
    """

    clock: VirtualClock
    rng: random.Random
    trouble: float
    limit: int
    fuse: Fuse = field(factory=Fuse)
    taken: Counter[str] = field(factory=Counter)
    """By order, how often its money was taken."""
    returned: Counter[str] = field(factory=Counter)

    name = "bank"

    async def charge(self, key: str, order_id: str, amount: Money, payment_method: str | None) -> ChargeResult:
        def do() -> ChargeResult:
            if amount.amount > self.limit:
                return Declined("no_money")
            self.taken[order_id] += 1
            return Captured(f"bank_{order_id}")

        return await self._call(do)

    async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        return await self._call(lambda: Captured(f"bank_{order_id}") if self.taken[order_id] else None)

    async def cancel(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        return await self.find(key, order_id, amount)

    async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> str:
        def do() -> str:
            self.returned[order_id] = 1  # of a refund every provider knows how much is left to give back
            return f"back_{order_id}"

        return await self._call(do)

    async def close(self) -> None:
        """There is no line."""

    async def _call(self, do: Callable[[], T]) -> T:
        fate = self.rng.random()
        await self.clock.sleep(self.rng.expovariate(20))
        self.fuse.point()
        if fate < self.trouble / 2:
            raise GatewayNotReached("nobody there")
        done = do()
        self.fuse.point()
        await self.clock.sleep(self.rng.expovariate(20))
        if fate < self.trouble:
            raise GatewayTimeout("no answer")
        return done


@asynccontextmanager
async def life(
    path: Path, clock: VirtualClock, bank: Bank, disk: Callable[[], bool], *, delivers_locally: bool
) -> AsyncIterator[Harness]:
    """Run the house on the file at *path* until the context ends, or the fuse of *bank* burns; then nothing is tidied up."""
    fuse = bank.fuse
    async with harness_at(path, clock, delivers_locally=delivers_locally) as harness:
        database: Any = harness.database  # whoever ends a process does not ask it what is private
        database._reader = LoopExecutor(database._reader._transactor)
        database._writer._committer = database._reader._committer = _AtOnce(fuse, disk)
        heard = subscriptions([runner.module for runner in harness.runners.values()], harness.contracts)
        breaker = CircuitBreaker(clock.monotonic)
        worker = PaymentWorker(
            harness.runners["payments"], bank, breaker, harness.contracts, clock, harness.metrics, rng=random.Random(1)
        )
        harness.runners["payments"].add_listener(worker.delays.on_commit)
        for consumer, subjects in heard.items():
            name = consumer.removesuffix(EXPRESS_LANE)
            subscription = await harness.bus.subscribe(consumer, subjects)
            if name == CONSUMER:
                harness.run(worker.consume(subscription))
            else:
                harness.run(harness.runners[name].consume(subscription, consumer != name))
        for name, runner in harness.runners.items():
            harness.run(runner.run())
            harness.run(harness.relays[name].run())
        harness.run(_flush(harness))
        try:
            yield harness
        finally:
            fuse.is_burnt = True  # from here on nobody in there gets anything done
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
                harness.tasks.append(task)
            await harness.stop()
            for queue in (database._writer, database._reader):
                queue._waiting.clear()
                queue._deferred.clear()
                queue._running, queue._committer = None, _AtOnce(Fuse())
                queue._transactor.disconnect()


async def _flush(harness: Harness) -> None:
    while True:
        await harness.clock.sleep(0.25)
        await harness.database.flush()
