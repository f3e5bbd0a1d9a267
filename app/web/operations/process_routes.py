"""The routes that every process has, beside those of its modules."""

from __future__ import annotations

__all__ = ["ProcessParts", "descriptions", "route_groups"]

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from app.gateways.breakers.operations import Operations
from app.messaging.bus_factory import BusRuntime
from app.messaging.consumers import subscriptions
from app.messaging.dead_letters import DeadLetterStore
from app.messaging.event_registry import all_modules
from app.messaging.outbox_relay import OutboxRelay
from app.messaging.versions.usage import VersionUsageReport
from app.runtime.runner import ModuleRunner
from app.storage.audit import AuditTrail
from app.storage.databases import Storage
from app.telemetry.attention import AttentionWatch
from app.telemetry.metrics import Metrics
from app.web.access.gate import Gate
from app.web.endpoints import audit, contracts, dead_letters, history, stream_tokens
from app.web.endpoints.health import Health
from app.web.handler import RouteGroup
from app.web.operations import explain, overview, system
from app.web.operations.module_api import ModuleApi
from app.web.spec import asyncapi
from app.web.spec.components import Description
from app.web.streams.state_stream import Streams
from bus.contracts.registry import ContractRegistry
from bus.port import Clock
from config.settings import Settings
from modules.module import Module


def descriptions(modules: Sequence[Module]) -> list[Description]:
    """Return the descriptions of these routes in a process that runs *modules* and asks no other one."""
    general = (audit, history, dead_letters, contracts, system, stream_tokens, overview)
    return [*(each.DESCRIPTION for each in general), explain.description(has_orders=any(each.name == "orders" for each in modules))]


class HasOperations(Protocol):
    """A connection to a provider outside."""

    @property
    def operations(self) -> Operations:
        """Its operations, each with a circuit breaker."""


class RuntimeParts(Protocol):
    """What runs the modules, by their names."""

    @property
    def runners(self) -> Mapping[str, ModuleRunner]:
        """The runners."""

    @property
    def relays(self) -> Mapping[str, OutboxRelay]:
        """The outbox relays."""


class ProcessParts(Protocol):
    """The parts of one process that these routes show (`app.bootstrap.Parts`)."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    modules: Sequence[Module]
    contracts: ContractRegistry
    storage: Storage
    dead_letters: DeadLetterStore
    bus: BusRuntime
    module_api: ModuleApi
    attention: AttentionWatch

    @property
    def runtime(self) -> RuntimeParts:
        """What runs the modules."""

    @property
    def gateways(self) -> Mapping[str, HasOperations]:
        """The gateways by the name of the module that uses it."""


def route_groups(
    parts: Any, health: Health, gate: Gate, streams: Streams, version: str
) -> tuple[tuple[RouteGroup, ...], overview.Overview]:
    """Return the routes of a process made of *parts* (`ProcessParts`), and its overview; *version* is the program's."""
    process: ProcessParts = parts
    modules, registry, storage, api = process.modules, process.contracts, process.storage, process.module_api
    usage = VersionUsageReport(modules, registry, process.metrics, process.bus.directory)
    trail = AuditTrail(storage.stores)
    status = overview.ProcessStatus(
        process.settings.bus, health, storage.stores, process.runtime.relays,
        [gateway.operations for gateway in process.gateways.values()], process.dead_letters, process.metrics, process.clock,
        process.attention,
    )  # fmt: skip
    whole = overview.Overview(status, api, process.clock)
    names = {module.name for module in modules}
    consumed = subscriptions(modules, registry)
    records = explain.OrderRecords(
        storage, process.runtime.runners, process.dead_letters, trail, all_modules(),
        {subject for consumer, subjects in consumed.items() if consumer.partition("-express")[0] not in names for subject in subjects},
        delivers_locally=process.settings.bus == "memory" and len(storage.databases) == 1,
    )  # fmt: skip
    groups = (
        overview.route_group(whole, streams, process.settings.modules),
        explain.route_group(
            explain.Explainer(api, process.clock), records, None if status.gateway is None else status.gateway.to_json,
            has_orders="orders" in api.reachable,
        ),
        audit.route_group(trail),
        history.route_group(storage.history, registry),
        dead_letters.route_group(process.dead_letters),
        contracts.route_group(usage, asyncapi.document(modules, registry, version)),
        system.route_group(system.System(process.settings, process.bus, storage.stores, process.clock)),
        stream_tokens.route_group(gate.tokens),
    )  # fmt: skip
    return groups, whole
