"""
The whole system on a virtual clock, with a process that can be killed at any point.

Nothing waits for a real clock, a thread or a network: the test advances the clock, the work of a thread is done at once,
and the payment provider is an object. Every run follows from one random seed, so a failure can be repeated.

A process ends at a point of its `CrashPoints`: before or after any begin, commit or read of the database, or any call of
the provider. The memory of the process is lost then; the database file, the provider and the clients remain.
"""

from __future__ import annotations

__all__ = ["CrashPoints", "FakeProvider", "ProcessKilled", "run_process"]

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

from app.gateways.breakers.circuit_breaker import CircuitBreaker
from app.gateways.breakers.operations import Operations
from app.gateways.payment_worker import CONSUMER, PaymentWorker
from app.gateways.port import (
    Captured,
    ChargeDetails,
    ChargeResult,
    Declined,
    GatewayNotReached,
    GatewayTimeout,
    Refunded,
    RefundResult,
)
from app.messaging.consumers import EXPRESS_LANE, subscriptions
from app.runtime.engine import direct_takers
from app.storage.sql.database import LoopExecutor
from modules.values import Money
from tests.clock import VirtualClock
from tests.runtime.harness import Harness, harness_at

T = TypeVar("T")


class ProcessKilled(BaseException):
    """The process is killed. Not an Exception, because no code of the process may catch it."""


@define
class CrashPoints:
    """The points at which the process can be killed; it is killed after *left* more points, or never if None."""

    left: int | None = None
    is_killed: bool = False
    points: int = 0

    def point(self) -> None:
        """
        Pass one point.

        Raises:
            ProcessKilled: The process is killed here, or was killed before.
        """
        self.points += 1
        if self.left is not None and not self.is_killed:
            self.left -= 1
            self.is_killed = self.left < 0
        if self.is_killed:
            raise ProcessKilled


class _ImmediateExecutor(Executor):
    """Runs each job at once, between two points of *crash_points*; a commit fails while *is_disk_full* returns True."""

    def __init__(self, crash_points: CrashPoints, is_disk_full: Callable[[], bool] = lambda: False) -> None:
        self._crash_points = crash_points
        self._is_disk_full = is_disk_full

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            self._crash_points.point()
            if getattr(fn, "__name__", "") == "commit" and self._is_disk_full():
                raise sqlite3.OperationalError("database or disk is full")
            done = fn(*args, **kwargs)
            self._crash_points.point()
            future.set_result(done)
        except BaseException as error:
            future.set_exception(error)
        return future


@define
class FakeProvider:
    """
    A payment provider that survives the process and ignores idempotency keys: every charge call captures money.

    The share *failure_rate* of all calls fails, half of them after they have taken effect. An amount above *limit* is
    declined.
    """

    clock: VirtualClock
    rng: random.Random
    failure_rate: float
    limit: int
    crash_points: CrashPoints = field(factory=CrashPoints)
    taken: Counter[str] = field(factory=Counter)
    """The number of captures by order id."""
    returned: Counter[str] = field(factory=Counter)

    name = "provider"

    async def charge(self, key: str, order_id: str, amount: Money, details: ChargeDetails) -> ChargeResult:
        def do() -> ChargeResult:
            if amount.amount > self.limit:
                return Declined("no_money")
            self.taken[order_id] += 1
            return Captured(f"bank_{order_id}")

        return await self._call(do)

    async def repeats_safely(self, order_id: str) -> bool:
        return False

    async def find(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        return await self._call(lambda: Captured(f"bank_{order_id}") if self.taken[order_id] else None)

    async def cancel(self, key: str, order_id: str, amount: Money) -> ChargeResult | None:
        return await self.find(key, order_id, amount)

    async def refund(self, key: str, order_id: str, reference: str, amount: Money) -> RefundResult:
        def do() -> RefundResult:
            self.returned[order_id] = 1  # a provider never refunds more than it has captured
            return Refunded(f"back_{order_id}", amount.amount)

        return await self._call(do)

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    async def _call(self, do: Callable[[], T]) -> T:
        draw = self.rng.random()
        await self.clock.sleep(self.rng.expovariate(20))
        self.crash_points.point()
        if draw < self.failure_rate / 2:
            raise GatewayNotReached("not reached")
        done = do()
        self.crash_points.point()
        await self.clock.sleep(self.rng.expovariate(20))
        if draw < self.failure_rate:
            raise GatewayTimeout("no answer")
        return done


@asynccontextmanager
async def run_process(
    path: Path, clock: VirtualClock, provider: FakeProvider, is_disk_full: Callable[[], bool], *, delivers_locally: bool
) -> AsyncIterator[Harness]:
    """
    Run the system on the SQLite file *path* until the block ends or the process is killed.

    The crash points are those of *provider*. As after a real kill, nothing is cleaned up.
    """
    crash_points = provider.crash_points
    async with harness_at(path, clock, delivers_locally=delivers_locally) as harness:
        database: Any = harness.database  # a kill has to reach private members
        database._reader = LoopExecutor(database._reader._transactor)
        database._writer._committer = database._reader._committer = _ImmediateExecutor(crash_points, is_disk_full)
        subjects_by_consumer = subscriptions([runner.module for runner in harness.runners.values()], harness.contracts)
        operations = Operations.of("simulated", clock, lambda kind: CircuitBreaker(clock.monotonic))
        worker = PaymentWorker(
            harness.runners["payments"],
            provider,
            operations,
            harness.contracts,
            clock,
            harness.metrics,
            rng=random.Random(1),
            takes_directly=delivers_locally,
        )
        harness.runners["payments"].add_listener(worker.delays.on_commit)
        if delivers_locally:
            harness.runners["payments"].takers = direct_takers([runner.module for runner in harness.runners.values()], {CONSUMER: worker.take})
        for consumer, subjects in subjects_by_consumer.items():
            name = consumer.removesuffix(EXPRESS_LANE)
            subscription = await harness.bus.subscribe(consumer, subjects)
            if name == CONSUMER:
                harness.run(worker.consume(subscription, consumer != name))
            else:
                harness.run(harness.runners[name].consume(subscription, consumer != name))
        for name, runner in harness.runners.items():
            harness.run(runner.run())
            harness.run(harness.relays[name].run())
        harness.run(_flush(harness))
        try:
            yield harness
        finally:
            crash_points.is_killed = True  # from here on no task of the process has an effect
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
                harness.tasks.append(task)
            await harness.stop()
            for queue in (database._writer, database._reader):
                queue._waiting.clear()
                queue._deferred.clear()
                queue._running, queue._committer = None, _ImmediateExecutor(CrashPoints())
                queue._transactor.disconnect()


async def _flush(harness: Harness) -> None:
    while True:
        await harness.clock.sleep(0.25)
        await harness.database.flush()
