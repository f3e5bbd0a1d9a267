"""A JetStream bus on a simulated server and a virtual clock, set up for one test, with dead-letter recovery."""

from __future__ import annotations

__all__ = ["SimulatedHarness"]

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import nats
from attrs import define, field
from nats.js import JetStreamContext

from bus.jetstream.admin.configs import stream_config
from bus.jetstream.admin.topology import Topology, consumer_plans
from bus.jetstream.bus import JetStreamBus
from bus.jetstream.recovery.exhausted_deliveries import ExhaustedDeliveries
from bus.jetstream.servers import Servers
from bus.port import Bus, DeadLetter
from bus.tasks import cancel_tasks
from tests.bus.contract import CREATED, EXPRESS, RESERVED
from tests.bus.features import Features, InMemoryDeadLetters
from tests.clock import VirtualClock
from tests.simulation.broker.network import Network
from tests.simulation.broker.server import Server
from tests.simulation.broker.stream import Stream
from tests.simulation.broker.virtual_loop import virtual_loop

T = TypeVar("T")

MODULES = ("orders", "inventory", "payments")
ROUND_TRIPS_SECONDS = 0.05
RUN_SECONDS_MAX = 3600.0


@define(kw_only=True)
class SimulatedHarness:
    """One bus on a server with streams and without consumers."""

    features: Features = Features(
        publish_waits_for_groups=False,
        survives_restart=True,
        is_ordered=True,
        delivers_earlier_messages=True,
    )
    server: Server
    network: Network
    clock: VirtualClock
    store: InMemoryDeadLetters = field(factory=InMemoryDeadLetters)
    ack_wait_seconds: float = 0.8  # the times are those of the suite on a real server
    patience_seconds: float = 10.0
    dedup_seconds: float = 1.5
    tolerance_seconds: float = 0.05
    late_seconds: float = 0.25
    lag_seconds: float = 0.0
    bus: JetStreamBus = field(init=False)
    buses: list[JetStreamBus] = field(factory=list)

    is_passing: bool = False
    """Whether the time of *clock* passes by itself (`tests.simulation.broker.virtual_loop.passing`)."""

    @classmethod
    @asynccontextmanager
    async def start(cls, rng: random.Random, **options: Any) -> AsyncIterator[Self]:
        """Start a server with streams, and connect; close every bus of this harness at the end."""
        clock = VirtualClock()
        server = Server(clock, rng, keeps_order=True)
        network = Network(clock, rng, server)
        with virtual_loop(clock, network):
            async with cls.on(server, network, clock, **options) as harness:
                yield harness

    @classmethod
    @asynccontextmanager
    async def on(cls, server: Server, network: Network, clock: VirtualClock, **options: Any) -> AsyncIterator[Self]:
        """Create the streams of *server* that are missing, and connect; close every bus of this harness at the end."""
        harness = cls(server=server, network=network, clock=clock, **options)
        for plan in Topology.of(MODULES, {}).streams:
            config = stream_config(plan, replicas=1, dedup_seconds=harness.dedup_seconds).as_dict()
            server.jetstream.streams.setdefault(plan.name, Stream(config, server.now_ns()))
        harness.bus = await harness.another("first")
        recovery = asyncio.create_task(harness.recovery().run())
        try:
            yield harness
        finally:
            await cancel_tasks([recovery])
            for bus in harness.buses:
                await harness.run(bus.close(0))
            if not harness.is_passing:
                await clock.settle()

    async def another(self, host: str = "", **options: Any) -> JetStreamBus:
        """Return one more bus on the server, connected from *host*, as another process would have it."""
        host = host or f"host-{len(self.buses)}"
        settings = {"ack_wait_seconds": self.ack_wait_seconds, "dedup_seconds": self.dedup_seconds, **options}
        bus = JetStreamBus(self.clock, self.store, Servers(urls=(f"nats://{host}:4222",)), **settings)
        self.buses.append(bus)
        await self.run(bus.connect())
        return bus

    async def administer(self, work: Callable[[JetStreamContext], Awaitable[None]]) -> None:
        """Do *work* with a client of its own."""
        client = await self.run(nats.connect("nats://administrator:4222"))
        try:
            await self.run(work(client.jetstream(timeout=5)))
        finally:
            await self.run(client.close())

    def recovery(self) -> ExhaustedDeliveries:
        """Return the dead-letter recovery for the consumers of the suite."""
        consumers = consumer_plans("inventory", [CREATED, EXPRESS])
        return ExhaustedDeliveries(
            lambda: self.bus.js(),
            "inventory",
            consumers,
            [RESERVED],
            self.store,
            self.clock,
            poll_seconds=self.ack_wait_seconds / 4,
            ack_wait_seconds=self.ack_wait_seconds,
        )

    def monotonic(self) -> float:
        return self.clock.monotonic()

    async def pass_time(self, seconds: float) -> None:
        await (self.clock.sleep(seconds) if self.is_passing else self.clock.advance(seconds))

    async def rest(self) -> None:
        await self.pass_time(ROUND_TRIPS_SECONDS)

    async def run(self, awaitable: Awaitable[T]) -> T:
        return await (asyncio.wait_for(awaitable, RUN_SECONDS_MAX) if self.is_passing else self.clock.run(awaitable))

    async def dead_letters(self, count: int) -> list[DeadLetter]:
        await self.rest()
        for _ in range(100):
            if len(self.store.kept) >= count:
                break
            await self.pass_time(self.ack_wait_seconds / 10)
        assert self.store.written == len(self.store.kept), "a dead letter was stored twice"
        return list(self.store.kept.values())

    def fail_dead_letters(self, times: int) -> None:
        self.store.failures_left = times

    async def restart(self) -> Bus:
        await self.run(self.bus.close(0))
        self.bus = await self.another(f"next-{len(self.buses)}")
        return self.bus
