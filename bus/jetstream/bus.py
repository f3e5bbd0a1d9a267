"""
The bus on NATS JetStream, for several processes.

Everything that a module publishes is stored in its stream; a consumer group is one durable on each stream that it
subscribes to. So the server keeps the promises of `bus.port`. This adapter keeps the time: how long a publish may take,
until when a message is in hand, when a request that got no answer is repeated.
"""

from __future__ import annotations

__all__ = ["JetStreamBus", "Servers"]

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress

import nats.errors
from nats.js import JetStreamContext

from bus.dead_letter_queue import DeadLetterQueue
from bus.errors import BusClosed, PublishRetryable
from bus.jetstream.admin.losses import LossDetector
from bus.jetstream.admin.stalls import STALLED_SECONDS, StallDetector
from bus.jetstream.admin.stored_marks import StoredMarks
from bus.jetstream.admin.topology import ConsumerPlan, consumer_plans
from bus.jetstream.admin.verifier import TopologyVerifier
from bus.jetstream.connection import CONNECT_SECONDS_MAX, Connection
from bus.jetstream.consumer_group import ConsumerGroup
from bus.jetstream.nats_client import NatsClient
from bus.jetstream.publisher import Publisher
from bus.jetstream.pull_consumer import PullConsumer
from bus.jetstream.servers import Servers, ServerSource
from bus.port import (
    ACK_WAIT_SECONDS,
    DEDUP_SECONDS,
    MAX_TRIES,
    Clock,
    DeadLetter,
    DeadLetters,
    Subscription,
)
from bus.tasks import cancel_tasks, seconds_to_tick

PUBLISH_SECONDS = 5.0
PING_SECONDS = 5.0
VERIFY_SECONDS = 10.0
_TICK_SECONDS_MAX = 0.25
_RETRY_SECONDS = 0.1
_RETRY_SECONDS_MAX = 5.0
_CANCEL_SECONDS = 0.1

_log = logging.getLogger(__name__)


class JetStreamBus:
    """
    The bus on NATS JetStream; see `bus.port.Bus` for what it promises.

    It may be used before it is connected and while the connection is lost: a publish then ends with `PublishRetryable`
    at once, and a subscription is bound in the background. Streams and durables that are missing are created where the
    user's permissions allow it.
    """

    def __init__(
        self,
        clock: Clock,
        dead_letters: DeadLetters,
        servers: Servers | ServerSource,
        *,
        replicas: int = 1,
        ack_wait_seconds: float = ACK_WAIT_SECONDS,
        max_tries: int = MAX_TRIES,
        dedup_seconds: float = DEDUP_SECONDS,
        publish_seconds: float = PUBLISH_SECONDS,
        ping_seconds: float = PING_SECONDS,
        connect_seconds_max: float = CONNECT_SECONDS_MAX,
        name: str = "fulfilment",
        inbox_prefix: str | None = None,
        streams: Sequence[str] = (),
        durables: Sequence[ConsumerPlan] = (),
        verify_seconds: float = VERIFY_SECONDS,
        stalled_seconds: float = STALLED_SECONDS,
        rng: random.Random | None = None,
    ) -> None:
        """
        Prepare the bus; `connect` connects it.

        The server is asked every *verify_seconds* whether *streams*, to which this process publishes, its consumers, and
        the *durables* that something else in this process reads are still as planned, and whether they deliver.
        """
        self.clock = clock
        self._streams, self._durables = tuple(streams), tuple(durables)
        self._verify_seconds = verify_seconds
        self._stall_detector = StallDetector(clock.monotonic, stalled_seconds)
        self._loss_detector = LossDetector(clock.monotonic)
        self.ack_wait_seconds = ack_wait_seconds
        self.max_tries = max_tries
        self._connection = Connection(
            clock,
            servers,
            name=name,
            inbox_prefix=inbox_prefix or f"_INBOX_{name}",
            ping_seconds=ping_seconds,
            connect_seconds_max=connect_seconds_max,
            on_connected=self._on_connected,
            on_disconnected=self._on_disconnected,
            rng=rng,
        )
        self.send: Callable[..., None] = self._connection.send
        self.is_connected = False
        self._publisher = Publisher(
            clock,
            self._connection,
            publish_seconds=publish_seconds,
            on_missing=self._verify_stream,
            on_recovered=lambda stream: self._verifier.note_stream_exists(stream),
        )
        self.publish = self._publisher.publish
        self.stored_marks = StoredMarks(self.js, clock, self._streams, self._publisher.newest)
        """Which streams of *streams* have lost messages of this process."""
        self._verifier = TopologyVerifier(
            self.js,
            lambda: self._connection.denied,
            clock,
            may_exist=lambda name: self.stored_marks.has_stored(name) or name in self._publisher.unanswered_streams,
            replicas=replicas,
            dedup_seconds=dedup_seconds,
            ack_wait_seconds=ack_wait_seconds,
            max_tries=max_tries,
            stalls=self._stall_detector,
            losses=self._loss_detector,
        )
        self._dead_letters = DeadLetterQueue(clock, dead_letters, on_idle=self.check_idle)
        self._tick_seconds = min(_TICK_SECONDS_MAX, ack_wait_seconds / 20, publish_seconds / 10)
        self._groups: dict[str, ConsumerGroup] = {}
        self._client: NatsClient | None = None
        self._tasks: dict[object, asyncio.Task[None]] = {}
        self.is_closing = False
        self._closers: set[asyncio.Future[None]] = set()
        """A future for each call of `close` that waits."""

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and established again."""
        return self._connection.reconnects

    @property
    def problems(self) -> Sequence[str]:
        # The verifier reports a denied call of the JetStream API together with what needed it.
        denied = [text for text in self._connection.denied if "$js.api" not in text]
        return [*self._verifier.problems, *denied]

    @property
    def stalls(self) -> Sequence[str]:
        """What makes no progress although the server answers: stalled consumers, refused requests, lost messages; one line each."""
        refusals = [
            f"consumer {consumer.plan.name} on {consumer.plan.stream} refuses requests: {consumer.refusal}"
            for consumer in self._consumers()
            if consumer.refusal
        ]
        return [*self._stall_detector.stalls, *refusals, *self._loss_detector.losses]

    def js(self) -> JetStreamContext:
        """
        Return the management calls of the current connection, for provisioning and recovery.

        Raises:
            nats.errors.ConnectionClosedError: There is no connection yet, or no more.
        """
        return self._connection.js

    async def connect(self) -> None:
        """
        Connect for the first time, with retries; from then on the connection is kept up until `close`.

        Raises:
            BrokerUnreachable: No server has accepted a connection for *connect_seconds_max*.
        """
        await self._connection.open()

    async def subscribe(self, consumer: str, subjects: Sequence[str]) -> Subscription:
        if self.is_closing:
            raise BusClosed("the bus is closed")
        group = self._groups.setdefault(consumer, ConsumerGroup(self, consumer))
        subscription = group.subscribe()
        added, removed = group.change(consumer_plans(consumer, subjects))
        for pull_consumer in added:
            self._start(pull_consumer, self._bind(pull_consumer))
        for pull_consumer in removed:
            await self._abandon(pull_consumer)
        return subscription

    async def close(self, grace_seconds: float = 5.0) -> None:
        if not self.is_closing:
            self.is_closing, self.is_connected = True, False
            self._publisher.stop()
            for consumer in self._consumers():
                consumer.return_buffered()
                with suppress(nats.errors.Error):
                    await consumer.unbind()
            for group in self._groups.values():
                group.waiters.wake_all()
        if not self._is_idle():
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._closers.add(idle)
            try:
                await asyncio.wait((idle,), timeout=grace_seconds)
            finally:
                self._closers.discard(idle)
        self._publisher.fail_all(BusClosed("the bus is closed"))
        storing = self._dead_letters.close()
        if storing is not None:
            # A store that ignores its cancellation must not delay the end.
            await asyncio.wait((storing,), timeout=_CANCEL_SECONDS)
        for consumer in self._consumers():
            consumer.return_in_flight()
            consumer.in_hand.clear()
        await cancel_tasks(self._tasks.values())
        await self._connection.close()
        self.check_idle()

    # For consumer groups

    def rebind(self, consumer: PullConsumer, reason: str) -> None:
        """Verify *consumer* on the server once more and subscribe again."""
        if consumer not in self._tasks and not self.is_closing:
            _log.warning("consumer %s on %s: %s", consumer.plan.name, consumer.plan.stream, reason)
            self._start(consumer, self._bind(consumer))

    def dead_letter(self, dead_letter: DeadLetter, on_stored: Callable[[], None], extend: Callable[[], bool]) -> None:
        """Store *dead_letter*; see `bus.dead_letter_queue.DeadLetterQueue.put`."""
        self._dead_letters.put(dead_letter, on_stored, extend)

    async def leave(self, group: ConsumerGroup) -> None:
        """Stop receiving for *group*: its last subscription in this process is closed."""
        for consumer in group.consumers:
            await self._abandon(consumer)
        group.consumers = []

    def check_idle(self) -> None:
        """End every waiting `close` if nothing is in hand or in flight any more."""
        if self._closers and self._is_idle():
            for idle in self._closers:
                if not idle.done():
                    idle.set_result(None)

    # The connection

    async def _on_connected(self, client: NatsClient) -> None:
        self._client = client
        await self._publisher.bind(client)
        self.is_connected = self._connection.is_up and not self.is_closing
        if "tick" not in self._tasks:
            self._start("tick", self._run_ticks())
            self._start("verify", self._verify_regularly())
        for consumer in self._consumers():
            self._start(consumer, self._bind(consumer))

    def _on_disconnected(self) -> None:
        self.is_connected = False
        self._publisher.fail_all(PublishRetryable("the connection to NATS is lost"))

    async def _bind(self, consumer: PullConsumer) -> None:
        """Verify *consumer* on the server until messages can be requested from it, then subscribe to its inbox."""
        retry_seconds = _RETRY_SECONDS
        while True:
            if self._client is not None and self._connection.is_up:
                try:
                    if await self._verifier.verify_consumer(consumer.plan):
                        await consumer.bind(self._client)
                        consumer.request_more()
                        self._verify_stream(consumer.plan.stream, is_missed=False)
                        return
                except (nats.errors.Error, TimeoutError, OSError) as error:
                    _log.debug("consumer %s on %s: %r", consumer.plan.name, consumer.plan.stream, error)
            await self.clock.sleep(retry_seconds)
            retry_seconds = min(_RETRY_SECONDS_MAX, retry_seconds * 2)

    async def _abandon(self, consumer: PullConsumer) -> None:
        task = self._tasks.pop(consumer, None)
        if task is not None:
            task.cancel()
        self._verifier.forget(consumer.plan)
        consumer.return_buffered()
        await consumer.unbind()

    def _verify_stream(self, name: str, *, is_missed: bool = True) -> None:
        if (key := (name, is_missed)) not in self._tasks and not self.is_closing:
            self._start(key, self._verify_stream_once(name, is_missed))

    async def _verify_stream_once(self, name: str, is_missed: bool) -> None:
        if self._connection.is_up:
            await self._verifier.verify_stream(name, is_missed=is_missed)
            if not self._publisher.is_failing(name):
                self._verifier.note_stream_exists(name)  # it has stored a message during the verification
        await self.clock.sleep(_RETRY_SECONDS)

    async def _verify_regularly(self) -> None:
        """Check regularly whether the server is as planned: an operator may change it at any time."""
        while True:
            await self.stored_marks.check()
            await self.clock.sleep(self._verify_seconds)
            plans = [consumer.plan for consumer in self._consumers() if consumer.is_bound]
            await self._verifier.verify_again(self._streams, [*plans, *self._durables], lambda: self._connection.is_up)

    def _start(self, key: object, coroutine: Coroutine[None, None, None]) -> None:
        """Run *coroutine* as the task of *key*, and cancel the task that *key* has had before."""
        previous = self._tasks.pop(key, None)
        if previous is not None:
            previous.cancel()
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._on_task_done(key, done))

    def _on_task_done(self, key: object, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s has failed", task.get_name(), exc_info=error)

    # Time

    async def _run_ticks(self) -> None:
        while True:
            await self.clock.sleep(seconds_to_tick(self.clock.monotonic(), self._tick_seconds))
            try:
                self._tick(self.clock.monotonic())
            except Exception:  # a bug; but without the next tick nothing that waits would ever end
                _log.exception("a tick of the bus has failed")

    def _tick(self, now: float) -> None:
        self._publisher.expire(now)
        self.stored_marks.add()
        self._dead_letters.tick(now)
        for consumer in self._consumers():
            consumer.tick(now)
        self.check_idle()

    def _consumers(self) -> list[PullConsumer]:
        return [consumer for group in self._groups.values() for consumer in group.consumers]

    def _is_idle(self) -> bool:
        return (
            self._dead_letters.is_empty
            and self._publisher.is_idle
            and not any(consumer.in_hand for consumer in self._consumers())
        )
