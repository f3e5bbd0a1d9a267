"""
Build the parts of one process from its settings, and connect them by hand.

Each ``build_*`` function returns one part; `build_parts` calls them in the order in which they need each other. Nothing
connects, listens or runs yet: `app.application.Application` starts and stops what is built here. What belongs to one
module only (options, metrics, a gateway to the outside) is in the tables `OPTIONS`, `LISTENERS` and `GATEWAYS`.
"""

from __future__ import annotations

__all__ = [
    "GatewayParts", "Parts", "Runtime", "build_modules", "build_parts", "build_runners", "build_web", "build_workers",
    "described_routes",
]  # fmt: skip

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from attrs import frozen
from loguru import logger

from app import installed_version
from app.clock import SystemClock
from app.gateways.breakers.circuit_breaker import BreakerState, CircuitBreaker
from app.gateways.breakers.operations import OperationKind, Operations
from app.gateways.gateway_calls import CALLS_MAX
from app.gateways.payment_worker import CONSUMER, PaymentWorker
from app.gateways.port import ChargeLedger, Gateway
from app.gateways.simulated import SimulatedGateway
from app.gateways.webhook_handler import CONSUMER as WEBHOOKS
from app.gateways.webhook_handler import StripeWebhookHandler
from app.messaging.bus_factory import BusRuntime, build_bus
from app.messaging.consumers import EXPRESS_LANE, subscriptions
from app.messaging.dead_letters import DeadLetterLine, DeadLetterStore
from app.messaging.event_registry import all_modules, build_registry
from app.messaging.loss_repair import LossRepair
from app.messaging.outbox_relay import OutboxRelay
from app.runtime.archiver import Archiver, build_archivers
from app.runtime.batch import BatchProcessor
from app.runtime.engine import LocalRoutes, TransactionEngine, direct_takers
from app.runtime.order_metrics import OrderMetrics, log_payment_cases
from app.runtime.receiving import EventReader
from app.runtime.runner import ModuleRunner
from app.runtime.work import CommitListener, Worker
from app.storage.clock_watch import ClockWatch, build_clock_watch
from app.storage.databases import Storage, build_storage
from app.storage.module_store import ModuleStore
from app.storage.sql.open_dialect import open_dialect
from app.storage.sql.reader_watch import ReaderWatches
from app.telemetry import otel
from app.telemetry.attention import AttentionWatch
from app.telemetry.metrics import Metrics
from app.telemetry.otel.collector_settings import CollectorSettings
from app.web import Gate, Health, Runner, build_application
from app.web.console import Console
from app.web.endpoints import stripe_webhook
from app.web.handler import RouteGroup
from app.web.operations import process_routes
from app.web.operations.module_api import ModuleApi
from app.web.spec.components import Description
from app.web.streams.state_stream import Streams
from app.web.workers import HttpWorkers
from bus.contracts.registry import ContractRegistry
from bus.port import Clock, Subscription
from config.settings import Settings
from modules.errors import ModuleError
from modules.module import Module
from modules.registry import load_module

OPTIONS: Mapping[str, Callable[[Settings], Mapping[str, Any]]] = {
    "inventory": lambda settings: {"requires_precondition": settings.inventory_requires_if_match},
    "orders": lambda settings: {"timeout": timedelta(seconds=settings.order_timeout_s)},
    "payments": lambda settings: {"timeout": timedelta(seconds=settings.order_timeout_s)},
}
"""What a module receives from the settings: keyword arguments of its factory, by the module's name."""


def build_modules(settings: Settings) -> list[Module]:
    """
    Return the descriptors of the modules that *settings* name.

    Raises:
        ModuleError: One of them is incomplete.
    """
    return [load_module(name, **module_options(settings, name)) for name in settings.modules]


def module_options(settings: Settings, name: str) -> Mapping[str, Any]:
    """Return the keyword arguments of the factory of the module *name*."""
    return OPTIONS[name](settings) if name in OPTIONS else {}


@frozen
class Runtime:
    """The runner and the outbox relay of each module, by the module's name."""

    runners: Mapping[str, ModuleRunner]
    relays: Mapping[str, OutboxRelay]


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
    keeps_order: bool = False,
    **options: Any,
) -> dict[str, ModuleRunner]:
    """
    Return a runner for each of *modules*, all with one transaction engine.

    With *delivers_locally* the modules share a database and this process. *remote_subjects* are also consumed outside the
    modules; by default those of the workers. With *keeps_order* events wait for a dead letter of their key. *options* go to each `ModuleRunner`.
    """
    readers = {module.name: EventReader(module.name, contracts, module.consumes) for module in modules}
    if remote_subjects is None:
        consumed = subscriptions(modules, contracts)
        remote_subjects = [s for name in consumed if name.removesuffix(EXPRESS_LANE) not in readers for s in consumed[name]]
    routes = LocalRoutes(readers if delivers_locally else {}, remote_subjects, contracts)
    lines = {name: DeadLetterLine(store) if keeps_order else None for name, store in stores.items()}
    processors = {m.name: BatchProcessor(m, stores[m.name], contracts, lines[m.name]) for m in modules}
    engine = TransactionEngine(processors, routes, clock)
    runners: dict[str, ModuleRunner] = {}
    for module in modules:
        name = module.name
        runners[name] = ModuleRunner(module, stores[name], engine, readers[name], relays[name], runners, clock, metrics, **options)
    return runners


LISTENERS: Mapping[str, Callable[[Metrics], CommitListener]] = {"orders": OrderMetrics, "payments": lambda _: log_payment_cases}
"""What counts and logs a module's commits, by the module's name."""


def build_runtime(
    settings: Settings,
    modules: Sequence[Module],
    contracts: ContractRegistry,
    storage: Storage,
    bus: BusRuntime,
    clock: Clock,
    metrics: Metrics,
) -> Runtime:
    """Return a runner and a relay for each of *modules*; with the bus in memory and one database they deliver locally."""
    relays = {name: OutboxRelay(store, bus.bus, bus.dead_letters, clock, metrics) for name, store in storage.stores.items()}
    backlog = relays.values()
    metrics.outbox_cap_used.set_function(lambda: sum(relay.pending_events for relay in backlog) / settings.outbox_cap)
    runners = build_runners(
        *(modules, storage.stores, contracts, relays, clock, metrics),
        delivers_locally=settings.bus == "memory" and len(storage.databases) == 1,
        keeps_order=settings.dead_letter_order == "key",
        batch_max=settings.batch_max,
        backlog=backlog,
        backlog_max=settings.outbox_cap,
    )
    for name, runner in runners.items():
        if name in LISTENERS:
            runner.add_listener(LISTENERS[name](metrics))
    return Runtime(runners, relays)


@frozen
class GatewayParts:
    """A module's connection to a provider outside: the workers by consumer name, and the routes that the provider calls."""

    gateway: Gateway
    workers: Mapping[str, Worker]
    route_groups: tuple[RouteGroup, ...]
    operations: Operations


def build_payment_gateway(
    settings: Settings,
    runner: ModuleRunner,
    contracts: ContractRegistry,
    dead_letters: DeadLetterStore,
    clock: Clock,
    metrics: Metrics,
) -> GatewayParts:
    """Return the payment provider that *settings* name, with its worker, circuit breaker and webhook."""
    if CONSUMER not in runner.module.workers:
        raise ModuleError(f"{runner.module.name}: its descriptor does not name the worker {CONSUMER}")
    gateway = _payment_provider(settings, clock)

    def make_breaker(kind: OperationKind) -> CircuitBreaker:
        # The breaker of charges keeps the label that it had when it was the only one.
        name = gateway.name if kind is OperationKind.CHARGE else f"{gateway.name}:{kind.value}"
        gauge = metrics.circuit_breaker_state.labels(name)
        gauge.set(0)

        def changed(state: BreakerState) -> None:
            gauge.set(state)
            logger.warning("circuit breaker", gateway=name, state=state.name.lower())

        return CircuitBreaker(clock.monotonic, on_change=changed)

    operations = Operations.of(gateway.name, clock, make_breaker, metrics.gateway_misconfigured)
    takes_directly = _takes_directly(settings, runner.module.name)
    worker = PaymentWorker(runner, gateway, operations, contracts, clock, metrics, takes_directly=takes_directly)
    runner.add_listener(worker.delays.on_commit)
    secrets, ledger = str(settings.stripe_webhook_secret or ""), gateway if isinstance(gateway, ChargeLedger) else None
    webhooks = StripeWebhookHandler(runner, secrets, ledger, operations.look_up, dead_letters, clock, metrics)
    return GatewayParts(gateway, {CONSUMER: worker}, (stripe_webhook.route_group(webhooks),), operations)


def _payment_provider(settings: Settings, clock: Clock) -> Gateway:
    if settings.payment_gateway == "stripe":
        # Stripe's SDK is large; only a process that uses it loads it.
        from app.gateways.stripe.gateway import StripeGateway

        return StripeGateway(str(settings.stripe_api_key), settings.stripe_api_base, CALLS_MAX, settings.stripe_installation)
    rates: dict[str, Any] = {"latency_seconds": settings.simulated_latency_ms / 1000, "failure_rate": settings.simulated_failure_rate}
    return SimulatedGateway(clock, decline_over=settings.simulated_decline_over, **rates)


def _takes_directly(settings: Settings, module: str) -> bool:
    """
    Return whether the workers of *module* may take what this process has committed without the bus.

    They may where no other process publishes the module's outbox: another replica would publish a row that is in hand
    here, and a worker would process the request a second time.
    """
    return settings.bus == "memory" or not open_dialect(settings.database_url(module)).is_shared


BuildGateway = Callable[[Settings, ModuleRunner, ContractRegistry, DeadLetterStore, Clock, Metrics], GatewayParts]

GATEWAYS: Mapping[str, BuildGateway] = {"payments": build_payment_gateway}
"""What runs the workers that a module's descriptor names, by the module's name."""

GATEWAY_ROUTES: Mapping[str, tuple[Description, ...]] = {"payments": (stripe_webhook.DESCRIPTION,)}
"""The routes of `GATEWAYS`, described without building one."""


@frozen
class Parts:
    """Everything that one process needs, connected and not yet running."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    modules: Sequence[Module]
    contracts: ContractRegistry
    storage: Storage
    dead_letters: DeadLetterStore
    bus: BusRuntime
    runtime: Runtime
    archivers: Mapping[str, Archiver]
    clock_watch: ClockWatch
    loss_repair: LossRepair
    reader_watches: ReaderWatches
    gateways: Mapping[str, GatewayParts]
    """By the name of the module that uses it."""
    module_api: ModuleApi
    attention: AttentionWatch

    def consumers(self) -> dict[str, Callable[[Subscription], Coroutine[Any, Any, None]]]:
        """Return what handles the deliveries of each consumer, by the consumer's name, both lanes."""
        found: dict[str, Callable[[Subscription], Coroutine[Any, Any, None]]] = {}
        for name, runner in self.runtime.runners.items():
            found[name], found[name + EXPRESS_LANE] = runner.consume, partial(runner.consume, is_express=True)
        for gateway in self.gateways.values():
            for name, worker in gateway.workers.items():
                found[name], found[name + EXPRESS_LANE] = worker.consume, partial(worker.consume, is_express=True)
        return found


def build_parts(settings: Settings, clock: Clock | None = None) -> Parts:
    """
    Build everything but the web server; nothing runs yet.

    Raises:
        DatabaseConfigError: A database cannot be opened.
        ContractError: Schemas and classes contradict each other.
        ModuleError: A module is incomplete.
        BadSetting: RETIRED_VERSIONS names what cannot be retired.
    """
    clock, metrics = clock or SystemClock(), Metrics()
    otel.start(CollectorSettings.of(settings), installed_version(), metrics)
    modules = build_modules(settings)
    contracts = build_registry(modules, settings.retired_versions)
    storage = build_storage(settings, modules)
    keeps_order = settings.dead_letter_order == "key"
    dead_letters = DeadLetterStore(storage.stores, contracts, clock, metrics, {WEBHOOKS}, keeps_order=keeps_order)
    bus = build_bus(settings, modules, contracts, clock, dead_letters)
    metrics.bus_connected.set_function(lambda: float(bus.bus.is_connected))
    metrics.bus_reconnects.set_function(bus.reconnects)
    runtime = build_runtime(settings, modules, contracts, storage, bus, clock, metrics)
    gateways = {
        name: GATEWAYS[name](settings, runner, contracts, dead_letters, clock, metrics)
        for name, runner in runtime.runners.items()
        if name in GATEWAYS
    }
    for module, worker in ((each, name) for each in modules for name in each.workers):
        if module.name not in gateways or worker not in gateways[module.name].workers:
            raise ModuleError(f"{module.name}: nothing runs the worker {worker}; GATEWAYS in app/bootstrap.py has to")
    takers = {name: worker.take for gateway in gateways.values() for name, worker in gateway.workers.items()}
    for name, runner in runtime.runners.items():
        if _takes_directly(settings, name):
            runner.takers = direct_takers({m.name: m for m in (*all_modules(), *modules)}.values(), takers)
    archivers = build_archivers(storage.stores, dead_letters.archive.sweeps(), settings.orders_kept, clock, metrics)
    return Parts(
        settings, clock, metrics, modules, contracts, storage, dead_letters, bus, runtime, archivers,
        build_clock_watch(storage.stores, clock, metrics, settings.clock_jump_s), LossRepair(storage.stores, bus.bus, bus.losses, clock),
        ReaderWatches({name: store.database for name, store in storage.stores.items()}, clock, metrics), gateways,
        ModuleApi(all_modules(), settings.modules, settings.module_urls, settings.module_key), AttentionWatch(metrics.families),
    )  # fmt: skip


def build_web(parts: Parts, health: Health, gate: Gate) -> Runner:
    """Return the HTTP server for *parts*, which does not listen yet; *health* answers the probes."""
    settings, streams = parts.settings, Streams()
    groups, whole = process_routes.route_groups(parts, health, gate, streams, installed_version())
    application = build_application(
        list(parts.runtime.runners.values()),
        health=health,
        metrics=parts.metrics,
        gate=gate,
        streams=streams,
        pages=Console(gate, parts.module_api, streams, parts.metrics, settings),
        cors_origins=settings.cors_origins,
        version=installed_version(),
        route_groups=(
            *groups,
            *(group for gateway in parts.gateways.values() for group in gateway.route_groups),
        ),
    )
    parts.module_api.serve_from(application)
    whole.attach(application)
    connections_max, seconds = None if settings.http_workers else settings.connections_max, max(1.0, settings.shutdown_grace_s / 4)
    return Runner(application, connections_max, is_private=settings.http_workers > 0, shutdown_timeout=seconds)


def build_workers(parts: Parts) -> HttpWorkers:
    """Return the HTTP workers that the settings ask for; none has started."""
    options = {module.name: module_options(parts.settings, module.name) for module in parts.modules}
    return HttpWorkers(parts.settings, [*parts.runtime.runners.values()], options, parts.metrics)


def described_routes(modules: Sequence[Module]) -> list[Description]:
    """Return the descriptions of the routes that a process with *modules* answers beside those of the modules."""
    own = [description for module in modules for description in GATEWAY_ROUTES.get(module.name, ())]
    return [*process_routes.descriptions(modules), *own]
