"""
The net under the consumers: finds what no worker could lay down itself.

A worker that dies on the last try of a message leaves nothing behind but an advisory of the server. Those are kept in the
stream ``ADVISORIES``; the patrol takes each one that is about its module's consumers, finds the message, and makes it a
dead letter under the same id that the worker would have given it, so that it is laid down once whoever is first. The
advisory comes when the answer to the last try is overdue.

Messages that nobody hears are the other thing that no worker can find; see `bus.jetstream.recovery.unroutable`.
"""

from __future__ import annotations

__all__ = ["ExhaustedDeliveries"]

import json
import logging
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from bus.ids import derived_id
from bus.jetstream.admin.configs import ensure, stream_config
from bus.jetstream.admin.provisioning import DEDUP_SECONDS
from bus.jetstream.admin.topology import ADVISORIES_PLAN, DEAD_LETTERS_PLAN, ConsumerPlan, advisory_consumer_plan
from bus.jetstream.recovery.durable_reader import DurableReader, headers_of
from bus.jetstream.recovery.unroutable import UnroutableMessages
from bus.jetstream.wire import AckMetadata, message_of
from bus.memory.consumer_group import NO_ANSWER
from bus.port import ACK_WAIT_SECONDS, Clock, DeadLetter, DeadLetters

LOOK_SECONDS = 1.0
AWAY_SECONDS_MAX = 30.0
BATCH = 100

_log = logging.getLogger(__name__)


class _Advisory(NamedTuple):
    stream: str
    consumer: str
    sequence: int
    deliveries: int


class ExhaustedDeliveries:
    """Walk the rounds of one module; several processes may, each thing is found once."""

    def __init__(
        self,
        js: Callable[[], JetStreamContext],
        module: str,
        consumers: Sequence[ConsumerPlan],
        known: Collection[str],
        dead_letters: DeadLetters,
        clock: Clock,
        *,
        replicas: int = 1,
        look_seconds: float = LOOK_SECONDS,
        ack_wait_seconds: float = ACK_WAIT_SECONDS,
    ) -> None:
        """
        Look after the *consumers* of *module* and its stream, whose *known* subjects are all right.

        *js* returns the connection of the moment, or raises `nats.errors.Error` while there is none.
        """
        self._js = js
        self._module = module
        self._dead_letters = dead_letters
        self._clock = clock
        self._replicas = replicas
        self._look_seconds = look_seconds
        self._reader = DurableReader(js, advisory_consumer_plan(module, consumers), ack_wait_seconds)
        self._strays = UnroutableMessages(js, module, known, dead_letters, clock)
        self._is_ready = False
        self._failures = 0

    async def run(self) -> None:
        """Step until cancelled."""
        while True:
            await self.step()

    async def step(self) -> None:
        """
        Walk one round: advisories, then strays. Takes about *look_seconds* when there is nothing to find.

        While the server or the dead letters do not answer, it waits longer each time, up to half a minute, and says so
        once.
        """
        try:
            if not self._is_ready:
                await self._prepare()
                self._is_ready = True
            for raw in await self._reader.take(BATCH, self._look_seconds):
                await self._see_to(raw)
            await self._strays.look()
        except Exception as error:  # a store may raise anything, and a patrol that ends finds nothing any more
            self._is_ready = False
            if not self._failures:
                _log.warning("the patrol of %s cannot look: %s", self._module, str(error) or repr(error))
            self._failures += 1
            await self._clock.sleep(min(AWAY_SECONDS_MAX, self._look_seconds * 2.0 ** min(self._failures - 1, 10)))
        else:
            if self._failures:
                _log.info("the patrol of %s looks again", self._module)
            self._failures = 0

    async def _prepare(self) -> None:
        """See to it that advisories and dead letters are kept, and that our advisories are heard."""
        plans = [
            stream_config(plan, replicas=self._replicas, dedup_seconds=DEDUP_SECONDS)
            for plan in (ADVISORIES_PLAN, DEAD_LETTERS_PLAN)
        ]
        await ensure(self._js(), streams=plans)
        await self._reader.ensure()

    async def _see_to(self, raw: Msg) -> None:
        """Make a dead letter of the message that an advisory is about, and be done with the advisory."""
        advisory = _read(raw.data)
        if advisory is None:
            _log.error("an advisory makes no sense: %.200r", raw.data)
            await raw.term()
            return
        try:
            dead_letter = await self._dead_letter(advisory)
            if dead_letter is not None:
                await self._dead_letters.add(dead_letter)
        except Exception:
            await raw.nak(delay=self._look_seconds)
            raise
        await raw.ack_sync()

    async def _dead_letter(self, advisory: _Advisory) -> DeadLetter | None:
        stream, consumer, sequence, deliveries = advisory
        try:
            found = await self._js().get_msg(stream, sequence)
        except NotFoundError:
            _log.error("%s gave up on message %d of %s, and it is gone from the stream", consumer, sequence, stream)
            return None
        mark = AckMetadata(stream, consumer, deliveries, sequence, 0)
        message = message_of(found.subject or "", found.data or b"", headers_of(found), mark)
        now = self._clock.now()
        return DeadLetter(
            id=derived_id(message.id, consumer),
            consumer=consumer,
            message=message,
            error=NO_ANSWER,
            detail=f"no answer to any of {deliveries} tries",
            attempts=deliveries,
            first_seen=found.time or now,
            last_seen=now,
        )


def _read(data: bytes) -> _Advisory | None:
    try:
        said = json.loads(data)
        return _Advisory(str(said["stream"]), str(said["consumer"]), int(said["stream_seq"]), int(said["deliveries"]))
    except (ValueError, TypeError, KeyError):
        return None
