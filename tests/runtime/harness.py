"""A system without HTTP whose parts a test steps by hand."""

from __future__ import annotations

__all__ = ["CONTEXT", "NO_CONTENT", "Harness", "HurriedClock", "bus_message", "harness_at", "let_decide", "oid", "product", "submitted", "until"]

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from attrs import define, evolve
from uuid_utils import uuid7

from app.bootstrap import build_runners
from app.clock import SystemClock
from app.gateways.webhook_handler import CONSUMER as WEBHOOKS
from app.messaging.cloudevents import to_message
from app.messaging.consumers import subscriptions
from app.messaging.dead_letters import DeadLetterStore
from app.messaging.event_registry import build_registry
from app.messaging.outbox_relay import OutboxRelay
from app.runtime.batch import BatchProcessor
from app.runtime.runner import ModuleRunner
from app.storage.module_store import ModuleStore
from app.storage.sql.database import Database
from app.storage.tables import OutboxMessage
from app.telemetry.metrics import Metrics
from app.telemetry.trace import TraceContext
from bus.contracts.registry import ContractRegistry
from bus.memory.bus import MemoryBus
from bus.port import Clock, Message
from bus.subjects import subject_of
from modules import inventory, orders, payments
from modules.inventory.events import ProductSet
from modules.module import DecisionOutcome, Module
from modules.orders.events import OrderSubmitted
from modules.routes import Response
from modules.values import Line, Money
from tests.databases import migrated_file

CONTEXT = TraceContext("test", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
PATIENCE_SECONDS = 30.0


def NO_CONTENT(outcome: DecisionOutcome) -> Response:
    """Build an empty reply."""
    return Response(200, None)


class HurriedClock(SystemClock):
    """A clock whose sleeps end after 10 ms at most."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


@define
class Harness:
    """One database, one bus, and a runner and a relay for each module; nothing runs until the test starts or steps it."""

    clock: Clock
    database: Database
    stores: dict[str, ModuleStore]
    contracts: ContractRegistry
    dead_letter_store: DeadLetterStore
    bus: MemoryBus
    relays: dict[str, OutboxRelay]
    runners: dict[str, ModuleRunner]
    metrics: Metrics
    tasks: list[asyncio.Task[None]]

    def run(self, loop: Any) -> None:
        """Run *loop* until the harness is stopped."""
        self.tasks.append(asyncio.create_task(loop))

    async def stop(self) -> None:
        """Cancel everything that runs."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def processor(self, name: str) -> BatchProcessor:
        """Return the batch processor of a module."""
        return self.runners[name]._engine._processors[name]

    async def consume(self, name: str) -> None:
        """Start the consumer and the runner of a module."""
        runner = self.runners[name]
        subscription = await self.bus.subscribe(name, subscriptions([runner.module], self.contracts)[name])
        self.run(runner.consume(subscription))
        self.run(runner.run())

    async def submit(self, name: str, event: Any, **how: Any) -> Any:
        """Submit an event to a module and let its runner take one step."""
        how = {"id": str(uuid7()), "trace": CONTEXT, "respond": NO_CONTENT, **how}
        pending = asyncio.create_task(self.runners[name].submit(event, **how))
        await asyncio.sleep(0)
        if not pending.done():
            await self.runners[name].step()
        return await pending

    async def rows(self, sql: str, *values: Any) -> list[Any]:
        """Return what *sql* finds in the database."""
        text = self.database.dialect.to_driver_sql(sql)
        found = await self.database.read(lambda connection: connection.exec_driver_sql(text, values).all())
        return [tuple(row) for row in found]

    async def outbox(self, name: str) -> list[Any]:
        """Return subject and sent_at of each outbox row of a module, in the order in which the rows are due."""
        return await self.rows(f"SELECT subject, sent_at FROM {name}_outbox ORDER BY due_at, id")


def _address(path: Path) -> str:
    """Return the URL of the SQLite file at *path*; a new file gets the tables of every module."""
    return f"sqlite:///{path}" if path.exists() else migrated_file(path)


@cache
def _modules() -> tuple[Sequence[Module], ContractRegistry]:
    """Return the modules and their contracts, which are the same in every harness."""
    descriptors = (orders.module(timedelta(seconds=900)), inventory.module(), payments.module())
    return descriptors, build_registry(descriptors)


@asynccontextmanager
async def harness_at(
    where: Path | str,
    clock: Clock | None = None,
    *,
    delivers_locally: bool = False,
    remote_subjects: Sequence[str] | None = None,
    keeps_order: bool = False,
    **runner: Any,
) -> AsyncIterator[Harness]:
    """
    Build a harness on the database in the file, or at the URL, *where*; a second one on the same file is a restart.

    A database at a URL has the tables of every module already.
    """
    clock = clock or SystemClock()
    metrics = Metrics()
    database = Database(where if isinstance(where, str) else _address(where))
    descriptors, contracts = _modules()
    stores = {descriptor.name: ModuleStore(descriptor, database) for descriptor in descriptors}
    dead_letter_store = DeadLetterStore(stores, contracts, clock, metrics, not_replayable={WEBHOOKS}, keeps_order=keeps_order)
    bus = MemoryBus(clock, dead_letter_store)
    relays = {name: OutboxRelay(store, bus, dead_letter_store, clock, metrics) for name, store in stores.items()}
    runners = build_runners(
        descriptors, stores, contracts, relays, clock, metrics,
        delivers_locally=delivers_locally, remote_subjects=remote_subjects, keeps_order=keeps_order, rng=random.Random(1), **runner,
    )  # fmt: skip
    harness = Harness(clock, database, stores, contracts, dead_letter_store, bus, relays, runners, metrics, [])
    try:
        yield harness
    finally:
        await harness.stop()
        await bus.close(0)
        await database.close()


def let_decide(harness: Harness, name: str, instead: Callable[..., Any]) -> None:
    """Replace the decider of a module; *instead* gets the original decider as its first argument."""
    processor = harness.processor(name)
    decide = processor._module.decide
    processor._module = evolve(processor._module, decide=lambda states, what, now: instead(decide, states, what, now))


async def until(is_so: Callable[[], Any]) -> Any:
    """Return the result of *is_so* (which may be a coroutine function) once it is true; fail after `PATIENCE_SECONDS`."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            found = is_so()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.005)


def oid(n: int) -> str:
    """Return the id of the *n*-th order."""
    return f"0199fe00-0000-7000-8000-{n:012}"


def submitted(order_id: str | None = None, quantity: int = 1, product_id: str = "A") -> OrderSubmitted:
    """Return a small order."""
    return OrderSubmitted(
        order_id=order_id or str(uuid7()),
        customer_id="c-1",
        items=(Line(product_id, quantity),),
        is_express=False,
        payment_method=None,
    )


def product(on_hand: int = 10, product_id: str = "A") -> ProductSet:
    """Return an event that sets the stock of *product_id*."""
    return ProductSet(product_id=product_id, on_hand=on_hand, unit_price=Money(100, "EUR"), name=None)


def bus_message(harness: Harness, event: Any, *, id: str | None = None, key: str = "", message_id: str | None = None) -> Message:
    """Return *event* as the bus message that another module would publish."""
    id = id or str(uuid7())
    now = harness.clock.now().isoformat(timespec="microseconds")
    body = harness.contracts.encode(event)
    return to_message(
        OutboxMessage(
            message_id or id, id, subject_of(event), key, body, None, CONTEXT.correlation_id, id, CONTEXT.traceparent, now, now
        )
    )
