"""
Recovery of messages that no worker could dead-letter itself.

When a worker crashes on the last try of a message, the server publishes an advisory and does nothing else. The stream
``ADVISORIES`` stores the advisories. Each module processes the advisories about its consumers: it reads the message from its
stream and makes it a dead letter, under the id that the worker would have given it, so that a dead letter that both make
is stored once. The server publishes the advisory when the answer to the last try is overdue.

The other kind of message that no worker can find is an unroutable one; see `bus.jetstream.recovery.unroutable`.
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

from bus.jetstream.admin.configs import ensure, stream_config
from bus.jetstream.admin.topology import ADVISORIES_PLAN, DEAD_LETTERS_PLAN, ConsumerPlan, advisory_consumer_plan
from bus.jetstream.delivery import AckMetadata, message_of
from bus.jetstream.recovery.durable_reader import DurableReader, raw_headers_of
from bus.jetstream.recovery.unroutable import UnroutableMessages
from bus.port import ACK_WAIT_SECONDS, DEDUP_SECONDS, NO_ANSWER, Clock, DeadLetter, DeadLetters

POLL_SECONDS = 1.0
RETRY_SECONDS_MAX = 30.0
BATCH_MAX = 100

_log = logging.getLogger(__name__)


class _Advisory(NamedTuple):
    stream: str
    consumer: str
    sequence: int
    deliveries: int


class ExhaustedDeliveries:
    """Dead-letters the exhausted and the unroutable messages of one module; several processes may run it at once."""

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
        poll_seconds: float = POLL_SECONDS,
        ack_wait_seconds: float = ACK_WAIT_SECONDS,
    ) -> None:
        """
        Process the advisories about *consumers* of *module*, and its stream, where *known* subjects are routable.

        *js* returns the current connection's JetStream context, or raises `nats.errors.Error` while there is none.
        """
        self._js = js
        self._module = module
        self._dead_letters = dead_letters
        self._clock = clock
        self._replicas = replicas
        self._poll_seconds = poll_seconds
        self._reader = DurableReader(js, advisory_consumer_plan(module, consumers), ack_wait_seconds)
        self._unroutable = UnroutableMessages(js, module, known, dead_letters, clock)
        self._is_ready = False
        self._failures = 0

    async def run(self) -> None:
        """Step until cancelled."""
        while True:
            await self.step()

    async def step(self) -> None:
        """
        Process waiting advisories, then scan for unroutable messages. Takes about *poll_seconds* when there are none.

        While the server or the dead letters do not answer, it waits longer each time, up to 30 seconds, and logs that once.
        """
        try:
            if not self._is_ready:
                await self._prepare()
                self._is_ready = True
            for raw in await self._reader.fetch(BATCH_MAX, self._poll_seconds):
                await self._process(raw)
            await self._unroutable.scan()
        except Exception as error:  # a store may raise anything, and recovery must not end
            self._is_ready = False
            if not self._failures:
                _log.warning("dead-letter recovery of %s is interrupted: %s", self._module, str(error) or repr(error))
            self._failures += 1
            await self._clock.sleep(min(RETRY_SECONDS_MAX, self._poll_seconds * 2.0 ** min(self._failures - 1, 10)))
        else:
            if self._failures:
                _log.info("dead-letter recovery of %s continues", self._module)
            self._failures = 0

    async def _prepare(self) -> None:
        """Create the streams of advisories and dead letters, and the durable that delivers this module's advisories."""
        plans = [
            stream_config(plan, replicas=self._replicas, dedup_seconds=DEDUP_SECONDS)
            for plan in (ADVISORIES_PLAN, DEAD_LETTERS_PLAN)
        ]
        await ensure(self._js(), streams=plans)
        await self._reader.ensure()

    async def _process(self, raw: Msg) -> None:
        """Dead-letter the message that the advisory *raw* is about, then acknowledge the advisory."""
        advisory = _parse(raw.data)
        if advisory is None:
            _log.error("an advisory is unreadable: %.200r", raw.data)
            await raw.term()
            return
        try:
            dead_letter = await self._dead_letter_of(advisory)
            if dead_letter is not None:
                await self._dead_letters.add(dead_letter)
        except Exception:
            await raw.nak(delay=self._poll_seconds)
            raise
        await raw.ack_sync()

    async def _dead_letter_of(self, advisory: _Advisory) -> DeadLetter | None:
        stream, consumer, sequence, deliveries = advisory
        try:
            found = await self._js().get_msg(stream, sequence)
        except NotFoundError:
            _log.error("%s has had its last try at message %d of %s, and it is gone from the stream", consumer, sequence, stream)
            return None
        metadata = AckMetadata(stream, consumer, deliveries, sequence, 0)
        message = message_of(found.subject or "", found.data or b"", raw_headers_of(found), metadata)
        detail = f"no answer to any of {deliveries} tries"
        return DeadLetter.of(message, consumer, NO_ANSWER, detail, deliveries, found.time, self._clock.now())


def _parse(data: bytes) -> _Advisory | None:
    try:
        fields = json.loads(data)
        return _Advisory(
            str(fields["stream"]), str(fields["consumer"]), int(fields["stream_seq"]), int(fields["deliveries"])
        )
    except (ValueError, TypeError, KeyError):
        return None
