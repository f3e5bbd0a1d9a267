"""The routes that every process has, beside those of its modules."""

from __future__ import annotations

__all__ = ["DESCRIPTIONS", "route_groups"]

from collections.abc import Sequence

from app.messaging.bus_factory import BusRuntime
from app.messaging.dead_letters import DeadLetterStore
from app.messaging.version_usage import VersionUsageReport
from app.storage.audit import AuditTrail
from app.storage.databases import Storage
from app.telemetry.metrics import Metrics
from app.web.access.gate import Gate
from app.web.endpoints import audit, contracts, dead_letters, history, stream_tokens
from app.web.handler import RouteGroup
from app.web.operations import overview, system
from app.web.spec import asyncapi
from app.web.spec.components import Description
from bus.contracts.registry import ContractRegistry
from bus.port import Clock
from config.settings import Settings
from modules.module import Module

DESCRIPTIONS: tuple[Description, ...] = tuple(
    each.DESCRIPTION for each in (audit, history, dead_letters, contracts, system, stream_tokens, overview)
)


def route_groups(
    modules: Sequence[Module],
    registry: ContractRegistry,
    storage: Storage,
    letters: DeadLetterStore,
    metrics: Metrics,
    bus: BusRuntime,
    gate: Gate,
    version: str,
    settings: Settings,
    clock: Clock,
) -> tuple[RouteGroup, ...]:
    """Return the routes of a process that runs *modules*; *version* is the program's."""
    usage = VersionUsageReport(modules, registry, metrics, bus.directory)
    return (
        audit.route_group(AuditTrail(storage.stores)),
        history.route_group(storage.history, registry),
        dead_letters.route_group(letters),
        contracts.route_group(usage, asyncapi.document(modules, registry, version)),
        system.route_group(system.System(settings, bus, storage.stores, clock)),
        stream_tokens.route_group(gate.tokens),
    )
