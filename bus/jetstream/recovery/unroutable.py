"""
Messages on a subject that nobody knows: found, laid down, and not looked at again.

Nobody's durable hears such a subject, so the stream would keep its messages until they are too old, and nobody would
ever learn of them. The stream is therefore asked which subjects it holds, and those that are not known are heard
through a durable of their own, ``<module>-strays``.

A durable that is told to hear one more subject hears it only from where it stands: what the stream took before that,
it passes over. That is read from the stream directly, once, before and after the durable is told.
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
from bus.ids import derived_id
from bus.jetstream.admin.configs import heard
from bus.jetstream.admin.topology import ConsumerPlan, stream_name
from bus.jetstream.recovery.durable_reader import DurableReader, headers_of
from bus.jetstream.wire import AckMetadata, message_of, parse_ack_subject
from bus.port import Clock, DeadLetter, DeadLetters, Message
from bus.replay_subjects import UNROUTABLE, original_subject

SUBJECTS_MAX = 256
"""Unknown subjects that are heard at once; who makes up more than that is a case for a person."""

BATCH = 100
WAIT_SECONDS = 0.5
PENDING_MAX = 256

_log = logging.getLogger(__name__)


class UnroutableMessages:
    """Look after the unknown subjects of one module's stream."""

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

    async def look(self) -> None:
        """
        Lay down all messages that nobody knows and that were not laid down before.

        Raises:
            Exception: The server or the dead letters do not answer; whatever was not done will be found again.
        """
        unknown = await self._unknown()
        if not unknown:
            return
        self._reader.plan = evolve(self._reader.plan, subjects=tuple(unknown))
        info = await self._reader.look()
        if info is not None and (fresh := sorted(set(unknown) - set(heard(info.config)))):
            passed = info.delivered.stream_seq if info.delivered else 0
            await self._catch_up(fresh, 0, passed)
            info = await self._reader.ensure()
            await self._catch_up(fresh, passed, info.delivered.stream_seq if info.delivered else 0)
        elif info is None:
            info = await self._reader.ensure()
        if info.num_pending or info.num_ack_pending:
            await self._read()

    async def _unknown(self) -> list[str]:
        """Return the subjects in the stream that nobody knows."""
        try:
            stream = await self._js().stream_info(self._reader.plan.stream, subjects_filter=f"{self._module}.>")
        except NotFoundError:  # nothing was ever said, or all of it is lost; others found streams
            return []
        unknown = sorted(subject for subject in stream.state.subjects or () if not self._is_known(subject))
        if len(unknown) > SUBJECTS_MAX:
            _log.error("%s holds %d unknown subjects; the first %d are heard", stream.config.name, len(unknown), SUBJECTS_MAX)
        return unknown[:SUBJECTS_MAX]

    def _is_known(self, subject: str) -> bool:
        return subject in self._known or original_subject(subject) != subject

    async def _read(self) -> None:
        """Lay down everything that the durable has for us."""
        while messages := await self._reader.take(BATCH, WAIT_SECONDS):
            for at, raw in enumerate(messages):
                mark = parse_ack_subject(raw.reply)
                if mark is None:
                    continue
                try:
                    await self._lay_down(message_of(raw.subject, raw.data, raw.headers, mark), raw.metadata.timestamp)
                except Exception:
                    for left in messages[at:]:
                        await left.nak(delay=1)
                    raise
                await raw.ack()
            if len(messages) < BATCH:
                break

    async def _catch_up(self, subjects: list[str], after: int, until: int) -> None:
        """Lay down what the stream took of *subjects* beyond the sequence *after*, up to *until*."""
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
                    mark = AckMetadata(stream, self._consumer, 1, sequence, 0)
                    await self._lay_down(message_of(subject, raw.data or b"", headers_of(raw), mark), raw.time)

    async def _lay_down(self, message: Message, said_at: datetime | None) -> None:
        if self._is_known(message.subject) or has_readable_sibling(message.subject, message.headers.get(VERSIONS, ""), self._known):
            return
        now = self._clock.now()
        await self._dead_letters.add(
            DeadLetter(
                id=derived_id(message.id, self._consumer),
                consumer=self._consumer,
                message=message,
                error=UnknownSubject.code,
                detail=f"nobody knows {message.subject}",
                attempts=1,
                first_seen=said_at or now,
                last_seen=now,
            )
        )
