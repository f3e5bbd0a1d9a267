"""
The stream of one module on NATS JetStream, read in its order.

The position in the file counts, not what the server remembers: the durable consumer is made anew whenever reading begins, and
when a delivery was lost on the way. So what was fetched and not stored comes again before anything that follows it. The consumer
begins with the event that was stored last: if another one has its number, the stream has lost its last messages and stored
others in their place, and is read from its beginning. The durable shows an operator how far the analytics are, and has the
id of the file in its name, so two files never share one.

A stream keeps 47 hours. What it deletes before it is read is missing: this is logged, and counted in ``analytics_gaps``.
"""

from __future__ import annotations

__all__ = ["FETCHED_MAX", "JetStreamSource"]

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import nats.errors
import pyarrow as pa
from loguru import logger
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from app.analytics.analytics_file import Position
from app.analytics.errors import SourceUnavailable
from app.analytics.events import SCHEMA, Incoming
from app.analytics.sources.source import Batch
from app.messaging.cloudevents import causation_id, event_id_and_trace, occurred_at, versions_of
from bus.consumers import UNDERSTOOD
from bus.contracts.registry import ContractRegistry
from bus.contracts.versions import has_readable_newer
from bus.errors import BusError
from bus.jetstream.admin.topology import stream_name
from bus.jetstream.delivery import message_of, parse_ack_subject
from bus.port import Message
from bus.subjects import EXPRESS, original_subject

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

FETCHED_MAX = 5_000
"""Messages of one batch."""

FETCH_SECONDS = 1.0
"""How long a fetch waits for the first message, and for the rest of a batch that is not complete."""

ACK_WAIT_SECONDS = 300.0
"""When a message is delivered again that is not stored. A batch takes a second or two, but the disk may be slow."""

INACTIVE_SECONDS = 72 * 3600.0
"""When nothing has fetched for so long, the server deletes the durable. The stream itself keeps messages for a shorter time."""

_ACK_PENDING_MAX = 4 * FETCHED_MAX


class JetStreamSource:
    """Reads what *module* has published."""

    def __init__(self, module: str, js: Callable[[], JetStreamContext], contracts: ContractRegistry, file_id: str) -> None:
        """*js* returns the calls of the present client; *file_id* distinguishes the file from others that read the same stream."""
        self.name = f"stream {stream_name(module)}"
        self._module = module
        self._stream = stream_name(module)
        self._durable = f"analytics-{file_id}"
        self._js = js
        self._contracts = contracts
        self._readable = {contract.subject for contract in contracts}
        own = sorted(subject for subject in self._readable if subject.partition(".")[0] == module)
        # It subscribes to all subjects, also to those of a later release. So that an older version can be retired, it
        # names the versions that it understands.
        self._understood = " ".join(subject + lane for subject in own for lane in ("", EXPRESS))
        self._subscription: Any = None
        self._delivered = 0
        """The number of the last delivery, which the server counts from 1."""
        self._created = ""
        self._fetched: list[Msg] = []
        """What was fetched, and is not acknowledged yet."""
        self._gap: tuple[int, int] | None = None
        self._stored: Position | None = None
        """What the consumer delivers first, and the file has: the event with the number and the id of this position."""

    async def read(self, positions: Mapping[str, Position]) -> Batch | None:
        """Return what follows the position of this stream; see `Source.read`."""
        position = positions.get(self.name)
        try:
            if self._subscription is None or self._fetched:
                await self._begin(position)
            messages, is_last = await self._following(position)
        except (nats.errors.Error, OSError) as error:
            self._subscription = None
            raise SourceUnavailable(f"NATS is out of reach, or does not permit reading {self._stream}: {error}") from None
        if not messages:
            return None
        self._fetched, gap, self._gap = messages, self._gap, None
        events, unreadable, last = self._events(messages)
        return Batch(events, last, is_last, unreadable, gap)

    async def stored(self) -> None:
        """
        Acknowledge what was returned last: it is in the file.

        Raises:
            SourceUnavailable: The connection is lost. What was not acknowledged comes again, and is not stored again.
        """
        try:
            for message in self._fetched:
                await message.ack()
        except (nats.errors.Error, OSError) as error:
            raise SourceUnavailable(f"NATS is out of reach: {error}") from None
        self._fetched = []

    async def _begin(self, position: Position | None) -> None:
        """Make the durable anew after *position*, as far as that holds for the stream as it is now."""
        self._subscription, self._fetched, self._delivered, self._gap, self._stored = None, [], 0, None, None
        try:
            info = await self._js().stream_info(self._stream)
        except NotFoundError:
            detail = f"there is no stream {self._stream}: start the module {self._module}, or run `topology --apply`"
            raise SourceUnavailable(detail) from None
        self._created, first = str(info.created or ""), info.state.first_seq
        if position is not None and (position.position > info.state.last_seq or position.details != self._created):
            logger.warning("the stream was made anew, and is read from its beginning", stream=self._stream)
            position = None
        start = 1 if position is None else position.position + 1
        if first > start:
            logger.warning(
                "the stream has deleted events before they were read: take them from the databases", stream=self._stream,
                count=first - start,
            )  # fmt: skip
            self._gap, start = (start, first - 1), first
        elif position is not None and position.last_event_id and first < start:
            self._stored, start = position, position.position
        with suppress(NotFoundError):
            await self._js().delete_consumer(self._stream, self._durable)
        config = ConsumerConfig(
            durable_name=self._durable,
            description="python -m app analytics run",
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_SECONDS,
            max_ack_pending=_ACK_PENDING_MAX,
            inactive_threshold=INACTIVE_SECONDS,
            metadata={UNDERSTOOD: self._understood},
        )
        await self._js().add_consumer(self._stream, config)
        self._subscription = await self._js().pull_subscribe_bind(consumer=self._durable, stream=self._stream)

    async def _following(self, position: Position | None) -> tuple[list[Msg], bool]:
        """Return what follows *position*, and whether it is all; begin again as long as something else is delivered."""
        while True:
            messages = await self._fetch()
            is_last = len(messages) < FETCHED_MAX
            if not self._is_complete(messages):
                logger.info("a delivery was lost: the stream is read again after the last stored event", stream=self._stream)
            elif messages and not self._is_as_stored(messages[0]):
                logger.warning("the stream has other events than those that were read, and is read from its beginning", stream=self._stream)
                position = None
            else:
                if messages and self._stored is not None and messages[0].metadata.sequence.stream == self._stored.position:
                    await messages.pop(0).ack()
                    self._stored = None
                return messages, is_last
            await self._begin(position)

    def _is_as_stored(self, first: Msg) -> bool:
        """Return whether *first*, the first message of a consumer, is the event that was stored last, or comes after it."""
        stored = self._stored
        return stored is None or first.metadata.sequence.stream != stored.position or _event_id(first) == stored.last_event_id

    async def _fetch(self) -> list[Msg]:
        try:
            found: list[Msg] = await self._subscription.fetch(FETCHED_MAX, timeout=FETCH_SECONDS)
        except TimeoutError:  # nothing is there, or nothing answers: the client does not distinguish
            await self._js().stream_info(self._stream)
            return []
        return found

    def _is_complete(self, messages: list[Msg]) -> bool:
        """Return whether *messages* follow what was delivered before, each once."""
        for message in messages:
            self._delivered += 1
            if message.metadata.sequence.consumer != self._delivered:
                return False
        return True

    def _events(self, messages: list[Msg]) -> tuple[Incoming, list[dict[str, Any]], Position]:
        """Return the events in *messages*, those that cannot be read with their reasons, and the position of the last message."""
        rows: list[dict[str, Any]] = []
        unreadable: list[dict[str, Any]] = []
        for each in messages:
            message = _message(each)
            if original_subject(message.subject) != message.subject:
                continue  # the replay of a dead letter: the event itself is in the stream of its producer
            if has_readable_newer(message.subject, versions_of(message) or "", self._readable):
                continue  # the same event in its newest version is in this stream, too
            row = self._row(message)
            try:
                if message.subject in self._contracts:
                    self._contracts.decode(message.subject, message.body)
                rows.append(row)
            except BusError as error:
                unreadable.append({**row, "reason": str(error)})
        last = Position(self.name, messages[-1].metadata.sequence.stream, _event_id(messages[-1]), self._created)
        return Incoming.of(pa.Table.from_pylist(rows, SCHEMA)), unreadable, last

    def _row(self, message: Message) -> dict[str, Any]:
        id, trace = event_id_and_trace(message)
        return {
            "event_id": id,
            "cause_id": causation_id(message),
            "correlation_id": trace.correlation_id,
            "entity_key": message.key,
            "module": self._module,
            "subject": message.subject,
            "seq": None,
            "occurred_at": occurred_at(message) or "",
            "data": message.body.decode("utf-8", "replace"),
        }


def _message(delivered: Msg) -> Message:
    metadata = parse_ack_subject(delivered.reply)
    assert metadata is not None
    return message_of(delivered.subject, delivered.data, dict(delivered.headers or {}), metadata)


def _event_id(delivered: Msg) -> str:
    return event_id_and_trace(_message(delivered))[0]
