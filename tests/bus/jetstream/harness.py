"""A JetStream bus on real servers and in real time, set up for one test, with its patrol."""

from __future__ import annotations

__all__ = ["MODULES", "JetStreamHarness", "say", "until"]

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, TypeVar

import nats
from attrs import define, field
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import NotFoundError, ServerError, ServiceUnavailableError

from app.clock import SystemClock
from bus.errors import PublishRetryable
from bus.jetstream.admin.configs import ensure, stream_config
from bus.jetstream.admin.topology import Topology, consumer_plans
from bus.jetstream.bus import JetStreamBus, Servers
from bus.jetstream.recovery.exhausted_deliveries import ExhaustedDeliveries
from bus.port import Bus, DeadLetter, Message
from bus.tasks import cancel_tasks
from tests.bus.contract import CREATED, EXPRESS, RESERVED
from tests.bus.features import Features, Letters

T = TypeVar("T")

_BEAT_SECONDS = 0.05

MODULES = ("orders", "inventory", "payments")


async def until(is_so: Callable[[], bool], within_seconds: float = 30) -> None:
    """Wait until *is_so*, and fail if that takes too long."""
    deadline = time.monotonic() + within_seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to that"
        await asyncio.sleep(0.01)


async def say(bus: Bus, messages: list[Message]) -> None:
    """Publish *messages* as the relay does: what ends with Retry goes out again under the same id, until all are taken."""
    deadline = time.monotonic() + 30
    left = messages
    while left:
        assert time.monotonic() < deadline, f"{len(left)} were never taken"
        ends = await asyncio.gather(*(bus.publish(each) for each in left), return_exceptions=True)
        assert all(end is None or isinstance(end, PublishRetryable) for end in ends), ends
        left = [each for each, end in zip(left, ends, strict=True) if end is not None]
        await asyncio.sleep(0.05)


async def found_anew(js: JetStreamContext, streams: Sequence[StreamConfig]) -> None:
    """
    Delete all streams there are, and found *streams*.

    A server is asked again that chooses a leader, and one on a slow disk that has not tidied up after the deleted yet.
    """
    deadline = time.monotonic() + 60
    while True:
        try:
            for info in await js.streams_info():
                assert info.config.name is not None
                with suppress(NotFoundError):
                    await js.delete_stream(info.config.name)
            await ensure(js, streams)
            return
        except (nats.errors.TimeoutError, ServiceUnavailableError, ServerError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_BEAT_SECONDS)


@define(kw_only=True)
class JetStreamHarness:
    """One bus on *urls*, where streams are, and no consumers yet."""

    features: Features = Features(
        publish_waits_for_groups=False,
        survives_restart=True,
        is_ordered=True,
        hears_the_past=True,
    )
    urls: Sequence[str]
    replicas: int = 1
    clock: SystemClock = field(factory=SystemClock)
    box: Letters = field(factory=Letters)
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
        """Found the streams anew, and connect; at the end close every bus of this stand and see that no task is left."""
        harness = cls(urls=tuple(urls), **options)
        client = await nats.connect(list(urls))
        plan = Topology.of(MODULES, {})
        try:
            await found_anew(
                client.jetstream(timeout=5),
                [stream_config(each, replicas=harness.replicas, dedup_seconds=harness.dedup_seconds) for each in plan.streams],
            )
        finally:
            await client.close()
        harness.bus = await harness.another()
        beside = [asyncio.create_task(harness.patrol().run()), asyncio.create_task(harness.feel_the_lag())]
        yield harness
        await cancel_tasks(beside)
        for bus in harness.buses:
            await harness.run(bus.close(0))
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def another(self, **options: Any) -> JetStreamBus:
        """Return one more bus on the same servers, connected: what another process would have."""
        settings = {
            "replicas": self.replicas,
            "ack_wait_seconds": self.ack_wait_seconds,
            "dedup_seconds": self.dedup_seconds,
            **options,
        }
        bus = JetStreamBus(self.clock, self.box, Servers(urls=tuple(self.urls)), **settings)
        self.buses.append(bus)
        await self.run(bus.connect())
        return bus

    def patrol(self) -> ExhaustedDeliveries:
        """Return the net under the consumers of the suite."""
        consumers = consumer_plans("inventory", [CREATED, EXPRESS])
        return ExhaustedDeliveries(
            lambda: self.bus.js(),
            "inventory",
            consumers,
            [RESERVED],
            self.box,
            self.clock,
            replicas=self.replicas,
            poll_seconds=self.ack_wait_seconds / 4,
            ack_wait_seconds=self.ack_wait_seconds,
        )

    @property
    def late_seconds(self) -> float:
        return self.tolerance_seconds + self.lag_seconds

    async def feel_the_lag(self) -> None:
        """Ask the servers for something small, over and over, and add up how late the answers are."""
        while True:
            began = time.monotonic()
            with suppress(Exception):  # closed, or its server is gone: then we feel our own loop only
                await self.bus.js().account_info()
            await asyncio.sleep(_BEAT_SECONDS)
            self.lag_seconds += max(0.0, time.monotonic() - began - 2 * _BEAT_SECONDS)

    def monotonic(self) -> float:
        return self.clock.monotonic()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def rest(self) -> None:
        """Let what is under way be answered: as long as anything of ours flies, and then a few round trips."""
        until = time.monotonic() + 10
        await asyncio.sleep(0.02)
        while self.bus._publisher.pending and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)

    async def run(self, awaitable: Awaitable[T]) -> T:
        return await asyncio.wait_for(awaitable, 30)

    async def letters(self, count: int) -> list[DeadLetter]:
        until = time.monotonic() + 10
        while len(self.box.kept) < count and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert self.box.written == len(self.box.kept), "a letter was laid down twice"
        return list(self.box.kept.values())

    def break_letters(self, times: int) -> None:
        self.box.failures_left = times

    async def restart(self) -> Bus:
        await self.run(self.bus.close(0))
        self.bus = await self.another()
        return self.bus
