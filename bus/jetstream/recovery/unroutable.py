"""
Unroutable messages: those on a subject that no consumer subscribes to. They become dead letters.

No durable delivers such a message, so without this the stream would keep it until it expires, unnoticed. The stream is
therefore asked which subjects it holds. Those that are not known are delivered by a durable for this purpose,
``<module>-strays``.

When a subject is added to a durable, the durable delivers it from its current position on only; messages before that are
skipped. They are read from the stream directly, once, before and after the subject is added.
"""

from __future__ import annotations

__all__ = ["UnroutableMessages"]

import logging
from collections.abc import Callable, Collection
from datetime import datetime

from attrs import evolve
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from bus.contracts.versions import VERSIONS, has_readable_sibling
from bus.errors import UnknownSubject
from bus.jetstream.admin.configs import filter_subjects
from bus.jetstream.admin.topology import ConsumerPlan, stream_name
from bus.jetstream.delivery import AckMetadata, message_of, parse_ack_subject
from bus.jetstream.recovery.durable_reader import DurableReader, raw_headers_of
from bus.port import Clock, DeadLetter, DeadLetters, Message
from bus.subjects import UNROUTABLE, original_subject

SUBJECTS_MAX = 256
"""Unknown subjects that are processed at once. More than that are a fault of the publisher, for a person to resolve."""

BATCH_MAX = 100
WAIT_SECONDS = 0.5
PENDING_MAX = 256

_log = logging.getLogger(__name__)


class UnroutableMessages:
    """Dead-letters what is on unknown subjects of one module's stream."""

    def __init__(
        self,
        js: Callable[[], JetStreamContext],
        module: str,
        known: Collection[str],
        dead_letters: DeadLetters,
        clock: Clock,
    ) -> None:
        self._js = js
        self._module = module
        self._known = frozenset(known)
        self._dead_letters = dead_letters
        self._clock = clock
        self._consumer = f"{module}{UNROUTABLE}"
        self._reader = DurableReader(js, ConsumerPlan(self._consumer, stream_name(module), (), PENDING_MAX))

    async def scan(self) -> None:
        """
        Dead-letter all messages on unknown subjects that were not dead-lettered before.

        Raises:
            Exception: The server or the dead letters do not answer; the next scan finds whatever is left.
        """
        unknown = await self._unknown_subjects()
        if not unknown:
            return
        self._reader.plan = evolve(self._reader.plan, subjects=tuple(unknown))
        info = await self._reader.info()
        if info is not None and (added := sorted(set(unknown) - set(filter_subjects(info.config)))):
            position = info.delivered.stream_seq if info.delivered else 0
            await self._catch_up(added, 0, position)
            info = await self._reader.ensure()
            await self._catch_up(added, position, info.delivered.stream_seq if info.delivered else 0)
        elif info is None:
            info = await self._reader.ensure()
        if info.num_pending or info.num_ack_pending:
            await self._read()

    async def _unknown_subjects(self) -> list[str]:
        """Return the unknown subjects that the stream holds messages of."""
        try:
            stream = await self._js().stream_info(self._reader.plan.stream, subjects_filter=f"{self._module}.>")
        except NotFoundError:  # the stream was never created, or is lost; it is not created here
            return []
        unknown = sorted(subject for subject in stream.state.subjects or () if not self._is_known(subject))
        if len(unknown) > SUBJECTS_MAX:
            text = "%s holds %d unknown subjects; the first %d are processed"
            _log.error(text, stream.config.name, len(unknown), SUBJECTS_MAX)
        return unknown[:SUBJECTS_MAX]

    def _is_known(self, subject: str) -> bool:
        return subject in self._known or original_subject(subject) != subject

    async def _read(self) -> None:
        """Dead-letter everything that the durable delivers."""
        while messages := await self._reader.fetch(BATCH_MAX, WAIT_SECONDS):
            for at, raw in enumerate(messages):
                metadata = parse_ack_subject(raw.reply)
                if metadata is None:
                    continue
                message = message_of(raw.subject, raw.data, raw.headers, metadata)
                try:
                    await self._dead_letter(message, raw.metadata.timestamp)
                except Exception:
                    for left in messages[at:]:
                        await left.nak(delay=1)
                    raise
                await raw.ack()
            if len(messages) < BATCH_MAX:
                break

    async def _catch_up(self, subjects: list[str], after: int, until: int) -> None:
        """Dead-letter the messages on *subjects* with a sequence beyond *after*, up to *until*, read from the stream."""
        stream = self._reader.plan.stream
        for subject in subjects:
            sequence = after
            while sequence < until:
                try:
                    raw = await self._js().get_msg(stream, seq=sequence + 1, subject=subject, next=True)
                except NotFoundError:
                    break
                assert raw.seq is not None
                sequence = raw.seq
                if sequence <= until:
                    metadata = AckMetadata(stream, self._consumer, 1, sequence, 0)
                    await self._dead_letter(message_of(subject, raw.data or b"", raw_headers_of(raw), metadata), raw.time)

    async def _dead_letter(self, message: Message, published_at: datetime | None) -> None:
        versions = message.headers.get(VERSIONS, "")
        if self._is_known(message.subject) or has_readable_sibling(message.subject, versions, self._known):
            return
        detail = f"no contract for {message.subject}"
        await self._dead_letters.add(
            DeadLetter.of(message, self._consumer, UnknownSubject.code, detail, 1, published_at, self._clock.now())
        )
