"""One process of the system: the parts that `app.bootstrap` connects, on virtual time, one file and a bus for its modules."""

from __future__ import annotations

__all__ = ["JUMP_SECONDS", "Downtime", "Place", "Process", "Seams", "contracts_of_all", "descriptors", "start_process"]

import asyncio
import hmac
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from attrs import define, evolve, field, frozen

from app.application import FLUSH_SECONDS
from app.bootstrap import build_runners
from app.gateways.breakers.circuit_breaker import BreakerState, CircuitBreaker
from app.gateways.breakers.operations import OperationKind, Operations
from app.gateways.payment_worker import CONSUMER, PaymentWorker
from app.gateways.port import Gateway
from app.gateways.webhook_handler import CONSUMER as WEBHOOKS
from app.gateways.webhook_handler import StripeWebhookHandler
from app.messaging.consumers import EXPRESS_LANE, subscriptions
from app.messaging.dead_letters import DeadLetterStore
from app.messaging.event_registry import build_registry
from app.messaging.loss_repair import LossRepair
from app.messaging.outbox_relay import OutboxRelay
from app.runtime.engine import direct_takers
from app.runtime.runner import ModuleRunner
from app.runtime.work import CommitListener
from app.storage.clock_watch import build_clock_watch
from app.storage.errors import StorageUnavailable
from app.storage.module_store import ModuleStore
from app.storage.sql.database import Database
from app.telemetry.metrics import Metrics
from app.telemetry.trace import TraceContext
from bus.contracts.registry import ContractRegistry
from bus.jetstream.bus import JetStreamBus
from bus.port import Bus, DeadLetters
from bus.tasks import cancel_tasks
from modules import inventory, orders, payments
from modules.module import Module
from tests.simulation.disk.faults import forget
from tests.simulation.disk.power import Images
from tests.simulation.world.loop import ProcessClock
from tests.simulation.world.scope import Scope

SECRET = "whsec_simulated"
JUMP_SECONDS = 60.0
"""From which difference on a jump of the clock moves the timers (CLOCK_JUMP_S)."""

CONSUMER_LOOP = "consumer"
"""How the names of those loops begin that fetch messages."""

STOP_STEP_SECONDS = 5.0
"""How long a step of a stop may take; a quarter of SHUTDOWN_GRACE_S."""

MakeBus = Callable[[Scope, ProcessClock, DeadLetters], Bus]


@define(eq=False)
class Seams:
    """Where the simulation takes part in a process."""

    make_bus: MakeBus
    make_gateway: Callable[[Scope], Gateway]
    open_database: Callable[[Scope, str, Path], Database]
    """Opens the file of a module."""
    on_breaker: Callable[[OperationKind, BreakerState], None]
    listeners: Mapping[str, CommitListener]
    decide: Callable[[str, Any, Sequence[Any], Any, Any], Any]
    """Called in place of a module's ``decide``: with the module's name, its ``decide``, the states, the event and the time."""


@define(eq=False)
class Process:
    """A running process."""

    scope: Scope
    clock: ProcessClock
    runners: Mapping[str, ModuleRunner]
    relays: Mapping[str, OutboxRelay]
    databases: Sequence[Database]
    dead_letters: DeadLetterStore
    worker: PaymentWorker | None
    webhooks: StripeWebhookHandler | None
    bus: Bus
    loops: Mapping[str, asyncio.Task[Any]]
    """What runs until the process ends."""

    async def receive_webhook(self, event: Any) -> str:
        """Process *event* as the webhook route does."""
        assert self.webhooks is not None
        body = orjson.dumps(event)
        seconds = int(self.clock.now().timestamp())
        signature = hmac.new(SECRET.encode(), b"%d." % seconds + body, sha256).hexdigest()
        return await self.webhooks.handle(body, f"t={seconds},v1={signature}", TraceContext("webhook", f"00-{'0' * 31}1-{'0' * 15}1-01"))

    async def stop(self) -> None:
        """Stop as `app.application.Application.stop` does: answer what was accepted, finish what is in hand, and store how far it came."""
        await cancel_tasks(task for name, task in self.loops.items() if name.startswith(CONSUMER_LOOP))
        if self.worker is not None:
            await self.worker.drain(STOP_STEP_SECONDS)
            await self.worker.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_STEP_SECONDS):
                await asyncio.gather(*(runner.drain() for runner in self.runners.values()))
        for relay in self.relays.values():
            with suppress(StorageUnavailable):
                await relay.stop()
        await cancel_tasks(self.loops.values())
        await self.bus.close(0.5)

    def in_memory(self) -> dict[str, int]:
        """Return how much is under way, by what it is; nothing of it may be left when the system is idle."""
        worker: Any = self.worker
        runners: list[Any] = [*self.runners.values()]
        relays: list[Any] = [*self.relays.values()]
        found = {
            "queued events": sum(len(each._queue) for each in runners),
            "events of several versions": sum(len(each._newest_by_event_id) for each in runners),
            "messages in flight": sum(len(each._in_flight) for each in relays),
        }
        if worker is not None:
            found |= {"requests in hand": len(worker._in_hand), "orders with a turn": len(worker._order_locks._last_turns)}
        return found

    def forget(self) -> None:
        """Close the files as the end of a process does."""
        for database in self.databases:
            forget(database)


START_SECONDS = 4.0
"""How long a process is down whose start has failed."""


@frozen
class Downtime:
    """A kill that was caused: how long the process stays down, and by how much its clock is set."""

    seconds: float = START_SECONDS
    jump_seconds: float = 0.0
    loses_power: bool = False
    """The machine of the process has lost its power."""


@define(eq=False)
class Place:
    """Where one process runs: its files, and the process while there is one."""

    number: int
    modules: tuple[str, ...]
    process: Process | None = None
    scope: Scope | None = None
    lives: int = 0
    skew_seconds: float = 0.0
    down: Downtime = field(factory=Downtime)
    starts: int = 0
    is_stopping: bool = False
    is_dead: bool = False
    """It is never started again."""
    down_seconds: float = 0.0
    down_since: float | None = 0.0
    disturbed_at: float = 0.0
    """When it was last started, or a fault of its file or of its bus began or ended."""
    images: Images | None = None
    """What a loss of power has left of its files, until they are restored."""


@cache
def descriptors(timeout_seconds: float) -> Mapping[str, Module]:
    """Return all modules; orders end *timeout_seconds* after they were placed."""
    timeout = timedelta(seconds=timeout_seconds)
    return {"orders": orders.module(timeout), "inventory": inventory.module(), "payments": payments.module(timeout)}


@cache
def contracts_of_all() -> ContractRegistry:
    """Return the contracts of all modules."""
    return build_registry([*descriptors(900).values()])


async def start_process(
    scope: Scope, clock: ProcessClock, modules: Sequence[Module], files: Mapping[str, Path], seams: Seams, *, keeps_order: bool, seed: str
) -> Process:
    """
    Build the process of *modules*, each with its file of *files*, and start it.

    Raises:
        StorageUnavailable: A file cannot be used; the process ends.
    """
    metrics, contracts = Metrics(), contracts_of_all()
    opened = {path: seams.open_database(scope, name, path) for path, name in {path: name for name, path in files.items()}.items()}
    try:
        modules = [evolve(each, decide=partial(seams.decide, each.name, each.decide)) for each in modules]
        stores = {each.name: ModuleStore(each, opened[files[each.name]]) for each in modules}
        letters = DeadLetterStore(stores, contracts, clock, metrics, {WEBHOOKS}, keeps_order=keeps_order)
        bus = seams.make_bus(scope, clock, letters)
        relays = {name: OutboxRelay(store, bus, letters, clock, metrics) for name, store in stores.items()}
        runners = build_runners(
            modules, stores, contracts, relays, clock, metrics,
            delivers_locally=len(modules) > 1 and len(opened) == 1, keeps_order=keeps_order, rng=random.Random(f"{seed}/runner"),
        )  # fmt: skip
        process = Process(scope, clock, runners, relays, [*opened.values()], letters, None, None, bus, {})
        if "payments" in runners:
            _add_gateway(process, seams, contracts, metrics, seed)
        for name, runner in runners.items():
            runner.add_listener(seams.listeners[name])
        await build_clock_watch(stores, clock, metrics, JUMP_SECONDS).start()
        await letters.free_keys()
        process.loops = {name: scope.run(work) for name, work in (await _loops(process, bus, contracts)).items()}
    except BaseException:
        for database in opened.values():
            forget(database)
        raise
    return process


def _add_gateway(process: Process, seams: Seams, contracts: ContractRegistry, metrics: Metrics, seed: str) -> None:
    runner, clock = process.runners["payments"], process.clock

    def make_breaker(kind: OperationKind) -> CircuitBreaker:
        return CircuitBreaker(clock.monotonic, on_change=partial(seams.on_breaker, kind))

    operations = Operations.of("provider", clock, make_breaker)
    process.worker = worker = PaymentWorker(
        runner, seams.make_gateway(process.scope), operations, contracts, clock, metrics,
        rng=random.Random(f"{seed}/worker"), takes_directly=True,
    )  # fmt: skip
    runner.add_listener(worker.delays.on_commit)
    process.webhooks = StripeWebhookHandler(
        runner, SECRET, None, operations.look_up, process.dead_letters, clock, metrics, wall_seconds=lambda: clock.now().timestamp()
    )
    takers = direct_takers([*descriptors(900).values()], {CONSUMER: worker.take})
    runner.takers = takers
    for other in process.runners.values():
        other.takers = takers


async def _loops(process: Process, bus: Bus, contracts: ContractRegistry) -> dict[str, Coroutine[Any, Any, None]]:
    """Return what has to run, by name."""
    loops: dict[str, Coroutine[Any, Any, None]] = {}
    for consumer, subjects in subscriptions([runner.module for runner in process.runners.values()], contracts).items():
        subscription = await bus.subscribe(consumer, subjects)
        name = consumer.removesuffix(EXPRESS_LANE)
        consume = process.worker.consume if process.worker is not None and name == CONSUMER else process.runners[name].consume
        loops[f"{CONSUMER_LOOP} {consumer}"] = consume(subscription, consumer != name)
    for name, runner in process.runners.items():
        loops[f"runner of {name}"] = runner.run()
        loops[f"relay of {name}"] = process.relays[name].run()
    loops["flush"] = _flush(process)
    if isinstance(bus, JetStreamBus):
        stores = {name: relay._store for name, relay in process.relays.items()}
        loops["loss repair"] = LossRepair(stores, bus, bus.stored_marks, process.clock).run()
    return loops


async def _flush(process: Process) -> None:
    while True:
        await process.clock.sleep(FLUSH_SECONDS)
        for database in process.databases:
            with suppress(StorageUnavailable):
                await database.flush()
