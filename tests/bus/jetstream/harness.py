"""A JetStream bus on real servers and in real time, set up for one test, with dead-letter recovery."""

from __future__ import annotations

__all__ = ["MODULES", "JetStreamHarness", "publish_all", "until"]

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, TypeVar

import nats
from attrs import define, field
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import ServerError, ServiceUnavailableError

from app.clock import SystemClock
from bus.errors import PublishRetryable
from bus.jetstream.admin.configs import ensure, stream_config
from bus.jetstream.admin.topology import Topology, consumer_plans
from bus.jetstream.bus import JetStreamBus, Servers
from bus.jetstream.recovery.exhausted_deliveries import ExhaustedDeliveries
from bus.port import Bus, DeadLetter, Message
from bus.tasks import cancel_tasks
from tests.bus.contract import CREATED, EXPRESS, RESERVED
from tests.bus.features import Features, InMemoryDeadLetters

T = TypeVar("T")

_POLL_SECONDS = 0.05

MODULES = ("orders", "inventory", "payments")


async def until(is_so: Callable[[], bool], within_seconds: float = 30) -> None:
    """Wait until *is_so*, and fail if that takes too long."""
    deadline = time.monotonic() + within_seconds
    while not is_so():
        assert time.monotonic() < deadline, "the condition did not become true"
        await asyncio.sleep(0.01)


async def publish_all(bus: Bus, messages: list[Message]) -> None:
    """Publish *messages* as the outbox relay does: again under the same id after `PublishRetryable`, until all are stored."""
    deadline = time.monotonic() + 30
    left = messages
    while left:
        assert time.monotonic() < deadline, f"{len(left)} were never stored"
        ends = await asyncio.gather(*(bus.publish(each) for each in left), return_exceptions=True)
        assert all(end is None or isinstance(end, PublishRetryable) for end in ends), ends
        left = [each for each, end in zip(left, ends, strict=True) if end is not None]
        await asyncio.sleep(0.05)


async def create(js: JetStreamContext, streams: Sequence[StreamConfig]) -> None:
    """Create *streams*, again and again while the server elects a leader."""
    deadline = time.monotonic() + 60
    while True:
        try:
            await ensure(js, streams)
            return
        except (nats.errors.TimeoutError, ServiceUnavailableError, ServerError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_POLL_SECONDS)


async def delete_all(js: JetStreamContext) -> None:
    """Delete all streams, so that the server need not keep them until its end; it may have none, or be down."""
    with suppress(nats.errors.Error):
        for info in await js.streams_info():
            await js.delete_stream(str(info.config.name))


@define(kw_only=True)
class JetStreamHarness:
    """One bus on *urls*, with streams and without consumers."""

    features: Features = Features(
        publish_waits_for_groups=False,
        survives_restart=True,
        is_ordered=True,
        delivers_earlier_messages=True,
    )
    urls: Sequence[str]
    replicas: int = 1
    clock: SystemClock = field(factory=SystemClock)
    store: InMemoryDeadLetters = field(factory=InMemoryDeadLetters)
    ack_wait_seconds: float = 0.8
    patience_seconds: float = 10.0
    dedup_seconds: float = 1.5
    tolerance_seconds: float = 0.3
    lag_seconds: float = 0.0
    bus: JetStreamBus = field(init=False)
    buses: list[JetStreamBus] = field(factory=list)

    @classmethod
    @asynccontextmanager
    async def on(cls, urls: Sequence[str], **options: Any) -> AsyncIterator[Self]:
        """
        Create the streams and connect; at the end close every bus of this harness, and check that no task is left.

        *urls* lead to a server, or an account of one, that no other test uses: what an earlier test has sent may arrive
        late, even after its streams are deleted.
        """
        harness = cls(urls=tuple(urls), **options)
        plan = Topology.of(MODULES, {})
        streams = [stream_config(each, replicas=harness.replicas, dedup_seconds=harness.dedup_seconds) for each in plan.streams]
        await harness.administer(lambda js: create(js, streams))
        harness.bus = await harness.another()
        background = [asyncio.create_task(harness.recovery().run()), asyncio.create_task(harness.measure_lag())]
        try:
            yield harness
        finally:
            await cancel_tasks(background)
            for bus in harness.buses:
                await harness.run(bus.close(0))
        if harness.replicas > 1:  # each of their streams and consumers keeps the nodes of a cluster busy
            await harness.administer(delete_all)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def administer(self, work: Callable[[JetStreamContext], Awaitable[None]]) -> None:
        """Do *work* with a client of its own."""
        client = await nats.connect(list(self.urls))
        try:
            await work(client.jetstream(timeout=5))
        finally:
            await client.close()

    async def another(self, **options: Any) -> JetStreamBus:
        """Return one more bus on the same servers, connected, as another process would have it."""
        settings = {
            "replicas": self.replicas,
            "ack_wait_seconds": self.ack_wait_seconds,
            "dedup_seconds": self.dedup_seconds,
            **options,
        }
        bus = JetStreamBus(self.clock, self.store, Servers(urls=tuple(self.urls)), **settings)
        self.buses.append(bus)
        await self.run(bus.connect())
        return bus

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
            replicas=self.replicas,
            poll_seconds=self.ack_wait_seconds / 4,
            ack_wait_seconds=self.ack_wait_seconds,
        )

    @property
    def late_seconds(self) -> float:
        return self.tolerance_seconds + self.lag_seconds

    async def measure_lag(self) -> None:
        """Send a small request to the servers again and again, and add up how late the answers are."""
        while True:
            began = time.monotonic()
            with suppress(Exception):  # closed, or its server is down: then only the lag of this loop is measured
                await self.bus.js().account_info()
            await asyncio.sleep(_POLL_SECONDS)
            self.lag_seconds += max(0.0, time.monotonic() - began - 2 * _POLL_SECONDS)

    def monotonic(self) -> float:
        return self.clock.monotonic()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def rest(self) -> None:
        """Wait until no publish is pending, and then a few round trips."""
        until = time.monotonic() + 10
        await asyncio.sleep(0.02)
        while self.bus._publisher.pending and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)

    async def run(self, awaitable: Awaitable[T]) -> T:
        return await asyncio.wait_for(awaitable, 30)

    async def dead_letters(self, count: int) -> list[DeadLetter]:
        until = time.monotonic() + 10
        while len(self.store.kept) < count and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert self.store.written == len(self.store.kept), "a dead letter was stored twice"
        return list(self.store.kept.values())

    def fail_dead_letters(self, times: int) -> None:
        self.store.failures_left = times

    async def restart(self) -> Bus:
        await self.run(self.bus.close(0))
        self.bus = await self.another()
        return self.bus
