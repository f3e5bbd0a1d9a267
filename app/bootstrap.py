"""The one place where the parts meet."""

from __future__ import annotations

__all__ = ["Application", "build_gateway", "build_modules", "build_registry", "build_runners"]

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from aiohttp import web
from loguru import logger

from app.clock import SystemClock
from app.gateways.circuit_breaker import BreakerState, CircuitBreaker
from app.gateways.gateway_calls import CALLS_MAX
from app.gateways.payment_worker import CONSUMER, PaymentWorker
from app.gateways.port import ChargeLedger, Gateway
from app.gateways.simulated import SimulatedGateway
from app.gateways.webhook_handler import CONSUMER as WEBHOOKS
from app.gateways.webhook_handler import StripeWebhookHandler
from app.messaging.bus_factory import build_bus
from app.messaging.consumers import EXPRESS_LANE, subscriptions
from app.messaging.dead_letters import DeadLetterStore
from app.messaging.event_registry import build_registry
from app.messaging.outbox_relay import OutboxRelay
from app.messaging.version_usage import VersionUsageReport
from app.runtime.batch import BatchProcessor
from app.runtime.engine import TransactionEngine
from app.runtime.local_routing import LocalRoutes
from app.runtime.runner import ModuleRunner
from app.storage.databases import claim_modules, migrate_all, open_databases, require_tables
from app.storage.errors import StorageUnavailable
from app.storage.module_store import ModuleStore
from app.storage.sql.database import Database
from app.storage.sql.dialect import ExclusiveAccess
from app.telemetry.metrics import Metrics
from app.telemetry.order_metrics import OrderMetrics
from app.web import Runner, build_application
from app.web.endpoints.contracts import route_group as contract_routes
from app.web.endpoints.dead_letters import route_group as dead_letter_routes
from app.web.endpoints.health import BUS, OK, TOPOLOGY
from app.web.endpoints.stripe_webhook import route_group as webhook_route
from app.web.route_group import RouteGroup
from app.web.spec import asyncapi
from bus.contracts.event_reader import EventReader
from bus.contracts.registry import ContractRegistry
from bus.errors import BrokerUnreachable
from bus.port import Clock, Subscription
from bus.tasks import cancel_tasks
from config.settings import Settings
from modules import inventory, orders, payments
from modules.module import Module

Listen = Callable[[Subscription], Coroutine[Any, Any, None]]

FLUSH_SECONDS = 0.25
"""What rides along with transactions waits no longer than this for one."""


def installed_version() -> str:
    """Return the version of the installed distribution."""
    try:
        return version("fulfilment")
    except PackageNotFoundError:
        return "0+checkout"


def build_modules(settings: Settings) -> list[Module]:
    """Return the door plates of the modules that *settings* name."""
    descriptors = {
        "orders": lambda: orders.module(timedelta(seconds=settings.order_timeout_s)),
        "inventory": inventory.module,
        "payments": payments.module,
    }
    return [descriptors[name]() for name in settings.modules]


def build_gateway(settings: Settings, clock: Clock) -> Gateway:
    """Return the payment provider that *settings* name; Stripe's SDK is big, and loaded only for who wants it."""
    if settings.payment_gateway == "stripe":
        from app.gateways.stripe.gateway import StripeGateway

        return StripeGateway(str(settings.stripe_api_key), settings.stripe_api_base, CALLS_MAX)
    return SimulatedGateway(
        clock,
        decline_over=settings.simulated_decline_over,
        latency_seconds=settings.simulated_latency_ms / 1000,
        failure_rate=settings.simulated_failure_rate,
    )


def build_runners(
    modules: Sequence[Module],
    stores: Mapping[str, ModuleStore],
    contracts: ContractRegistry,
    relays: Mapping[str, OutboxRelay],
    clock: Clock,
    metrics: Metrics,
    *,
    delivers_locally: bool,
    remote_subjects: Collection[str] | None = None,
    **options: Any,
) -> dict[str, ModuleRunner]:
    """
    Return a runner for each of *modules*, all with one transaction engine.

    With *delivers_locally* the modules share a database and this process. *remote_subjects* are also consumed outside the
    modules; by default those of the workers. *options* go to each `ModuleRunner`.
    """
    readers = {module.name: EventReader(module.name, contracts, module.consumes) for module in modules}
    if remote_subjects is None:
        consumed = subscriptions(modules, contracts)
        remote_subjects = [s for name in consumed if name.removesuffix(EXPRESS_LANE) not in readers for s in consumed[name]]
    routes = LocalRoutes(readers if delivers_locally else {}, remote_subjects, contracts)
    processors = {module.name: BatchProcessor(module, stores[module.name], contracts) for module in modules}
    engine = TransactionEngine(processors, routes, clock)
    runners: dict[str, ModuleRunner] = {}
    for module in modules:
        name = module.name
        runners[name] = ModuleRunner(
            module, stores[name], engine, readers[name], relays[name], runners, clock, metrics, **options
        )
    return runners


class Application:
    """
    The house, running.

    `start` returns once it answers; `stop` finishes what is in hand. `phase` and `checks` are `app.web.Health`.
    """

    phase: Literal["starting", "ready", "draining"] = "starting"
    on_fatal: Callable[[int], None] = staticmethod(lambda code: None)
    """Called with the exit code when a loop of the house has ended and only a restart can help."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        """
        Put the parts together; nothing runs yet.

        Raises:
            Unusable: A database cannot be opened.
            ContractError: Schemas and classes contradict each other.
        """
        self.settings = settings
        self.metrics = Metrics()
        self._clock = clock = clock or SystemClock()
        modules = build_modules(settings)
        contracts = build_registry(modules)
        urls = {module.name: settings.database_url(module.name) for module in modules}
        self.databases: dict[str, Database] = open_databases(settings, urls)
        self.stores = stores = {module.name: ModuleStore(module, self.databases[urls[module.name]]) for module in modules}
        self.dead_letters = DeadLetterStore(stores, clock, self.metrics, not_replayable={WEBHOOKS})
        self._transport = build_bus(settings, modules, contracts, clock, self.dead_letters)
        self.bus = self._transport.bus
        self.metrics.bus_connected.set_function(lambda: float(self.bus.is_connected))
        self.metrics.bus_reconnects.set_function(self._transport.reconnects)
        self.relays = {name: OutboxRelay(store, self.bus, clock, self.metrics) for name, store in stores.items()}
        database, *others = self.databases.values()
        shares_transactions = settings.bus == "memory" and not others and not database.dialect.is_shared
        self.runners = build_runners(
            modules, stores, contracts, self.relays, clock, self.metrics,
            delivers_locally=shares_transactions, batch_max=settings.batch_max, backlog=self._backlog, backlog_max=settings.outbox_cap,
        )  # fmt: skip
        self._contracts = contracts
        self._worker = self._gateway_worker() if "payments" in self.runners else None
        if "orders" in self.runners:
            self.runners["orders"].add_listener(OrderMetrics(self.metrics))
        if self._worker is not None:
            self.runners["payments"].add_listener(self._worker.delays.on_commit)
        self._tasks: list[asyncio.Task[None]] = []
        self._listening: list[asyncio.Task[None]] = []
        self._claims: list[ExclusiveAccess] = []
        self._runner = Runner(
            build_application(
                list(self.runners.values()),
                health=self,
                metrics=self.metrics,
                api_keys=settings.api_keys or None,
                version=installed_version(),
                route_groups=(
                    dead_letter_routes(self.dead_letters),
                    contract_routes(
                        VersionUsageReport(modules, contracts, self.metrics, self._transport.directory),
                        asyncapi.document(modules, contracts, installed_version()),
                    ),
                    *self._webhooks(),
                ),
            ),
            handle_signals=False,
            shutdown_timeout=max(1.0, settings.shutdown_grace_s / 4),
        )

    def _backlog(self) -> int:
        return sum(relay.pending for relay in self.relays.values())

    def _webhooks(self) -> tuple[RouteGroup, ...]:
        """Return the route for the provider's webhooks, where payments run."""
        if "payments" not in self.runners:
            return ()
        secret, gateway = self.settings.stripe_webhook_secret, self.gateway
        ledger = gateway if isinstance(gateway, ChargeLedger) else None
        service = StripeWebhookHandler(
            self.runners["payments"],
            None if secret is None else str(secret),
            *(ledger, self.dead_letters, self._clock, self.metrics),
        )
        return (webhook_route(service),)

    def _gateway_worker(self) -> PaymentWorker:
        gateway = self.gateway = build_gateway(self.settings, self._clock)
        gauge = self.metrics.circuit_breaker_state.labels(gateway.name)
        gauge.set(0)

        def changed(state: BreakerState) -> None:
            gauge.set(state)
            logger.warning("circuit breaker", gateway=gateway.name, state=state.name.lower())

        breaker = CircuitBreaker(self._clock.monotonic, on_change=changed)
        return PaymentWorker(self.runners["payments"], gateway, breaker, self._contracts, self._clock, self.metrics)

    def migrate(self) -> list[str]:
        """
        Bring every module's tables to the head; return the names of those that were behind.

        Raises:
            NewerDatabase: A database was written by a newer release.
            OutOfReach: One cannot be opened or written.
        """
        return migrate_all(self.settings, self.databases, self.runners)

    def require_tables(self) -> None:
        """See to it that every module's tables are at the head; raises as `app.storage.databases.require_tables` does."""
        require_tables(self.settings, self.databases, self.runners)

    def claim(self) -> None:
        """See to it that nobody else serves our modules from the same files; raises as `app.storage.databases.claim_modules` does."""
        self._claims = claim_modules(self.settings, self.databases, self.runners)

    async def start(self) -> str:
        """
        Start everything; return the address that it answers at.

        Raises:
            OSError: The port is taken, or the address is not ours.
        """
        listeners: dict[str, Listen] = {}
        for name, runner in self.runners.items():
            listeners[name] = runner.consume
            listeners[name + EXPRESS_LANE] = partial(runner.consume, is_express=True)
        if self._worker is not None:
            listeners[CONSUMER] = listeners[CONSUMER + EXPRESS_LANE] = self._worker.consume
        self._run(self._transport.run(), "transport")
        for consumer, subjects in subscriptions([runner.module for runner in self.runners.values()], self._contracts).items():
            await self._attach(consumer, subjects, listeners[consumer])
        for name, runner in self.runners.items():
            self._run(runner.run(), f"shell of {name}")
            self._run(self.relays[name].run(), f"relay of {name}")
        self._run(self._flush(), "flush")
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.settings.http_host, self.settings.http_port, backlog=1024)
        await site.start()
        self.phase = "ready"
        host, port = self._runner.addresses[0][:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def stop(self) -> None:
        """Answer who was let in, finish what is in hand, write down how far we got. What is not done is done at the next start."""
        self.phase = "draining"
        seconds = self.settings.shutdown_grace_s / 4
        await self._runner.cleanup()
        await cancel_tasks(self._listening)
        if self._worker is not None:
            await self._worker.drain(seconds)
            await self._worker.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(runner.drain() for runner in self.runners.values()))
        for relay in self.relays.values():
            with suppress(StorageUnavailable):  # the marks are lost; the events go out again at the next start
                await relay.stop()
        await cancel_tasks(self._tasks)
        await self.bus.close(0.5)
        for database in self.databases.values():
            await database.close()
        for claim in self._claims:
            claim.close()

    async def checks(self) -> Mapping[str, str]:
        """Ask the bus and each database how they are."""
        found = {BUS: OK if self.bus.is_connected else "unavailable"}
        if self.bus.problems:
            found[TOPOLOGY] = "; ".join(self.bus.problems)
        for name in self.runners:
            database = self.databases[self.settings.database_url(name)]
            try:
                await database.check()
                found[f"database:{name}"] = OK
            except StorageUnavailable:
                found[f"database:{name}"] = "unavailable"
        return found

    async def _attach(self, consumer: str, subjects: list[str], listen: Listen) -> None:
        """Hear *subjects* as *consumer*."""
        subscription = await self.bus.subscribe(consumer, subjects)
        self._run(listen(subscription), f"listener of {consumer}")
        self._listening.append(self._tasks[-1])

    def _run(self, loop: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(loop, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A loop of the house that breaks is a bug: say so, and leave it to a restart."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, BrokerUnreachable):
            logger.critical("the bus is out of reach; the process stops", detail=str(error))
            self.on_fatal(3)
            return
        logger.opt(exception=error).critical("a loop ended; the process stops", loop=task.get_name())
        self.on_fatal(1)

    async def _flush(self) -> None:
        while True:
            for database in self.databases.values():
                with suppress(StorageUnavailable):
                    await database.flush()
            await self._clock.sleep(FLUSH_SECONDS)
