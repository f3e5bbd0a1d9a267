"""Build the bus that the settings name, and the tasks that have to run beside it."""

from __future__ import annotations

__all__ = ["BusRuntime", "build_bus"]

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from attrs import frozen

from app.messaging.loss_repair import Losses, NoLosses
from bus.consumers import ConsumerDirectory
from bus.contracts.registry import ContractRegistry
from bus.memory.bus import MemoryBus
from bus.memory.listing import MemoryConsumerDirectory
from bus.port import Bus, Clock, DeadLetters
from bus.subjects import EXPRESS
from config.settings import Settings
from modules.module import Module


@frozen
class BusRuntime:
    """A *bus*; what has to *run* while it is used; how often its connection was lost and found; its consumers."""

    bus: Bus
    run: Callable[[], Coroutine[Any, Any, None]]
    reconnects: Callable[[], float]
    directory: ConsumerDirectory
    stalls: Callable[[], Sequence[str]]
    """Returns what makes no progress although the bus is connected, one line each."""
    kept_versions: Callable[[], str]
    """Returns why retired versions are still published; empty if none is."""
    losses: Losses
    """The streams that have lost what this process has published to them."""
    dead_letters: DeadLetters
    """The store of dead letters, which also publishes them where the bus has a stream for them."""


def build_bus(
    settings: Settings, modules: Sequence[Module], contracts: ContractRegistry, clock: Clock, dead_letters: DeadLetters
) -> BusRuntime:
    """
    Return the bus that *settings* describe. Nothing is connected yet.

    Its ``run`` raises `bus.errors.BrokerUnreachable` when the first connection is not made in time.
    """
    if settings.bus == "memory":
        memory = MemoryBus(clock, dead_letters)
        # Only the modules of this process consume from it: `build_registry` refuses to retire what one of them needs.
        return BusRuntime(memory, _nothing, lambda: 0.0, MemoryConsumerDirectory(memory), tuple, str, NoLosses(), dead_letters)
    return _nats(settings, modules, contracts, clock, dead_letters)


def _nats(
    settings: Settings, modules: Sequence[Module], contracts: ContractRegistry, clock: Clock, dead_letters: DeadLetters
) -> BusRuntime:
    # What one process with its own bus never needs must not delay its start.
    from app.messaging.consumers import planned_topology
    from app.messaging.nats_session import connection_name, servers
    from app.messaging.versions.retirement import Retirement
    from app.messaging.versions.usage import subjects_of
    from bus.jetstream.admin.listing import JetStreamConsumerDirectory
    from bus.jetstream.admin.topology import ADVISORIES, DEAD_LETTERS, stream_name
    from bus.jetstream.bus import VERIFY_SECONDS, JetStreamBus
    from bus.jetstream.recovery.dead_letter_stream import DeadLetterPublisher
    from bus.jetstream.recovery.exhausted_deliveries import ExhaustedDeliveries
    from bus.subjects import module_of
    from bus.tasks import cancel_tasks

    consumers = planned_topology(modules).consumers
    published = DeadLetterPublisher(dead_letters, lambda: bus)
    bus = JetStreamBus(
        clock,
        published,
        lambda: servers(settings),
        replicas=settings.nats_replicas,
        ack_wait_seconds=settings.nats_ack_wait_s,
        name=connection_name(settings),
        streams=[*(stream_name(module.name) for module in modules), ADVISORIES, DEAD_LETTERS],
        durables=[consumer for consumer in consumers if consumer.stream == ADVISORIES],
        verify_seconds=min(VERIFY_SECONDS, settings.work_stalled_s / 3),
        stalled_seconds=settings.work_stalled_s,
    )
    known = [name for contract in contracts for name in (contract.subject, contract.subject + EXPRESS)]
    scanners = [
        ExhaustedDeliveries(
            bus.js,
            module.name,
            [consumer for consumer in consumers if module_of(consumer.name) == module.name],
            [subject for subject in known if subject.startswith(f"{module.name}.")],
            published,
            clock,
            replicas=settings.nats_replicas,
            ack_wait_seconds=settings.nats_ack_wait_s,
        )
        for module in modules
    ]

    # A NATS user may have permissions for its own modules only; the server does not answer requests about other streams.
    listeners = JetStreamConsumerDirectory(bus.js, map(stream_name, subjects_of(modules, contracts)))
    retirement = Retirement((module.name for module in modules), contracts, bus, listeners, clock)

    async def connect_and_scan() -> None:
        await bus.connect()
        tasks = [asyncio.create_task(loop) for loop in (retirement.run(), *(scanner.run() for scanner in scanners))]
        try:
            await asyncio.gather(*tasks)
        finally:
            await cancel_tasks(tasks)

    return BusRuntime(
        bus, connect_and_scan, lambda: float(bus.reconnects), listeners, lambda: bus.stalls, lambda: retirement.problem,
        bus.stored_marks, published,
    )  # fmt: skip


async def _nothing() -> None:
    """Return at once: the memory bus needs no task beside it."""
