"""
NATS JetStream: the bus for several processes.

Everything that a module says lies in its stream; a group is one durable consumer on each stream that it hears. So the
server keeps the promises of `bus.port`, and this adapter keeps the time: how long a publish may take, how long a
message is ours, when a silent server is asked again.
"""

from __future__ import annotations

__all__ = ["JetStreamBus", "Servers"]

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextlib import suppress

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext

from bus.dead_letter_queue import DeadLetterQueue
from bus.errors import BusClosed, PublishRetryable
from bus.jetstream.admin.topology import consumer_plans
from bus.jetstream.admin.verifier import TopologyVerifier
from bus.jetstream.connection import CONNECT_SECONDS_MAX, Connection, Servers
from bus.jetstream.consumer_group import ConsumerGroup, GroupSubscription
from bus.jetstream.delivery import Delivery
from bus.jetstream.publisher import Publisher, end
from bus.jetstream.pull_consumer import PullConsumer
from bus.port import ACK_WAIT_SECONDS, MAX_TRIES, Clock, DeadLetters, Message, Subscription
from bus.tasks import cancel_tasks

PUBLISH_SECONDS = 5.0
PING_SECONDS = 5.0
_TICK_SECONDS_MAX = 0.25
_AGAIN_SECONDS = 0.1
_AGAIN_SECONDS_MAX = 5.0

_log = logging.getLogger(__name__)


class JetStreamBus:
    """
    The bus on NATS JetStream; see `bus.port.Bus` for what it promises.

    It may be used before it is connected, and while it is not: a publish then ends with `PublishRetryable` at once, and a
    subscription is bound in the background. Streams and durables that are missing are founded, if we may.
    """

    def __init__(
        self,
        clock: Clock,
        dead_letters: DeadLetters,
        servers: Servers,
        *,
        replicas: int = 1,
        ack_wait_seconds: float = ACK_WAIT_SECONDS,
        max_tries: int = MAX_TRIES,
        dedup_seconds: float = 120.0,
        publish_seconds: float = PUBLISH_SECONDS,
        ping_seconds: float = PING_SECONDS,
        connect_seconds_max: float = CONNECT_SECONDS_MAX,
        name: str = "fulfilment",
        inbox_prefix: str | None = None,
    ) -> None:
        self.clock = clock
        self.ack_wait_seconds = ack_wait_seconds
        self.max_tries = max_tries
        self._connection = Connection(
            clock,
            servers,
            name=name,
            inbox_prefix=inbox_prefix or f"_INBOX_{name}",
            ping_seconds=ping_seconds,
            connect_seconds_max=connect_seconds_max,
            on_up=self._came_up,
            on_down=self._went_down,
        )
        self.send = self._connection.send
        self._dispatch = Publisher(
            clock,
            self._connection,
            publish_seconds=publish_seconds,
            on_missing=self._look_after_stream,
            on_taken=lambda stream: self._ground.takes_messages(stream),
        )
        self._ground = TopologyVerifier(
            self.js,
            lambda: self._connection.denied,
            replicas=replicas,
            dedup_seconds=dedup_seconds,
            ack_wait_seconds=ack_wait_seconds,
            max_tries=max_tries,
        )
        self._letters = DeadLetterQueue(
            clock, dead_letters, ack_wait_seconds=ack_wait_seconds, on_idle=self.look_whether_idle
        )
        self._tick_seconds = min(_TICK_SECONDS_MAX, ack_wait_seconds / 20, publish_seconds / 10)
        self._groups: dict[str, ConsumerGroup] = {}
        self._client: Client | None = None
        self._tasks: dict[object, asyncio.Task[None]] = {}
        self.is_closing = False
        self._closers: set[asyncio.Future[None]] = set()

    @property
    def is_connected(self) -> bool:
        return self._connection.is_up and not self.is_closing

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and found again."""
        return self._connection.reconnects

    @property
    def problems(self) -> Sequence[str]:
        # What we may not ask of the server's API is told by whatever needed it.
        denied = [text for text in self._connection.denied if "$js.api" not in text]
        return [*self._ground.problems, *denied]

    def js(self) -> JetStreamContext:
        """
        Return the management calls of the connection of this moment, for whoever provisions or patrols.

        Raises:
            nats.errors.ConnectionClosedError: There is none yet, or no more.
        """
        return self._connection.js

    async def connect(self) -> None:
        """
        Connect for the first time, with patience; from then on the connection is kept up for ever.

        Raises:
            Unreachable: No server has let us in for *connect_seconds_max*.
        """
        await self._connection.open()

    def publish(self, message: Message) -> asyncio.Future[None]:
        if self.is_closing:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            end(future, BusClosed("the bus is closed"))
            return future
        return self._dispatch.publish(message)

    async def subscribe(self, consumer: str, subjects: Sequence[str]) -> Subscription:
        if self.is_closing:
            raise BusClosed("the bus is closed")
        group = self._groups.setdefault(consumer, ConsumerGroup(self, consumer))
        member = GroupSubscription(group)
        group.members[member] = None
        fresh, left = group.change(consumer_plans(consumer, subjects))
        for durable in fresh:
            self._start(durable, self._bind(durable))
        for durable in left:
            await self._abandon(durable)
        return member

    async def leave(self, group: ConsumerGroup) -> None:
        """Listen for *group* no more: its last member here has gone."""
        for durable in group.durables:
            await self._abandon(durable)
        group.durables = []

    async def close(self, grace_seconds: float = 5.0) -> None:
        if not self.is_closing:
            self.is_closing = True
            for durable in self._durables():
                durable.empty()
                with suppress(nats.errors.Error):
                    await durable.unbind()
            for group in self._groups.values():
                group.wake_all()
        if not self._is_idle():
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._closers.add(idle)
            try:
                await asyncio.wait((idle,), timeout=grace_seconds)
            finally:
                self._closers.discard(idle)
        self._dispatch.fail_all(BusClosed("the bus is closed"))
        await self._letters.close()
        for durable in self._durables():
            durable.hand_back()
            durable.held.clear()
        await cancel_tasks(self._tasks.values())
        await self._connection.close()
        self.look_whether_idle()

    # For groups, durables and deliveries

    def give_up(self, delivery: Delivery, error: str, detail: str) -> None:
        self._letters.put(delivery, error, detail)

    def rebind(self, durable: PullConsumer, said: str) -> None:
        """Verify *durable* once more, and listen anew."""
        if durable not in self._tasks and not self.is_closing:
            _log.warning("consumer %s on %s: %s", durable.plan.name, durable.plan.stream, said)
            self._start(durable, self._bind(durable))

    def look_whether_idle(self) -> None:
        if self._closers and self._is_idle():
            for idle in self._closers:
                if not idle.done():
                    idle.set_result(None)

    # The connection

    async def _came_up(self, client: Client) -> None:
        self._client = client
        await self._dispatch.bind(client)
        if "tick" not in self._tasks:
            self._start("tick", self._tick_for_ever())
        for durable in self._durables():
            self._start(durable, self._bind(durable))

    def _went_down(self) -> None:
        self._dispatch.fail_all(PublishRetryable("the connection to NATS is lost"))

    async def _bind(self, durable: PullConsumer) -> None:
        """Verify *durable* until it can be fetched from, and listen."""
        again_seconds = _AGAIN_SECONDS
        while True:
            if self._client is not None and self._connection.is_up:
                try:
                    if await self._ground.durable(durable.plan):
                        await durable.bind(self._client)
                        durable.group.ask(durable)
                        self._look_after_stream(durable.plan.stream, is_missed=False)
                        return
                except (nats.errors.Error, TimeoutError, OSError) as error:
                    _log.debug("consumer %s on %s: %r", durable.plan.name, durable.plan.stream, error)
            await self.clock.sleep(again_seconds)
            again_seconds = min(_AGAIN_SECONDS_MAX, again_seconds * 2)

    async def _abandon(self, durable: PullConsumer) -> None:
        task = self._tasks.pop(durable, None)
        if task is not None:
            task.cancel()
        self._ground.forget(durable.plan)
        durable.empty()
        await durable.unbind()

    def _look_after_stream(self, name: str, *, is_missed: bool = True) -> None:
        what = name, is_missed
        if what not in self._tasks and not self.is_closing:
            self._start(what, self._verify(name, is_missed))

    async def _verify(self, name: str, is_missed: bool) -> None:
        if self._connection.is_up:
            await self._ground.stream(name, is_missed=is_missed)
            if not self._dispatch.is_in_trouble(name):
                self._ground.takes_messages(name)  # it has answered while we were looking
        await self.clock.sleep(_AGAIN_SECONDS)

    def _start(self, what: object, coroutine: Coroutine[None, None, None]) -> None:
        """Run *coroutine* for *what*, instead of what ran for it before."""
        before = self._tasks.pop(what, None)
        if before is not None:
            before.cancel()
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[what] = task
        task.add_done_callback(lambda done: self._ended(what, done))

    def _ended(self, what: object, task: asyncio.Task[None]) -> None:
        if self._tasks.get(what) is task:
            del self._tasks[what]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s has failed", task.get_name(), exc_info=error)

    # Time

    async def _tick_for_ever(self) -> None:
        while True:
            await self.clock.sleep(self._tick_seconds)
            try:
                self._tick(self.clock.monotonic())
            except Exception:  # a bug; but nothing that waits would ever end without the next tick
                _log.exception("a tick of the bus has failed")

    def _tick(self, now: float) -> None:
        self._dispatch.sweep(now)
        self._letters.tick(now)
        for durable in self._durables():
            durable.tick(now)
        self.look_whether_idle()

    def _durables(self) -> list[PullConsumer]:
        return [durable for group in self._groups.values() for durable in group.durables]

    def _is_idle(self) -> bool:
        return (
            self._letters.is_empty and not self._dispatch.flights and not any(each.held for each in self._durables())
        )
