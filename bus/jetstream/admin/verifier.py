"""
Verification of streams and durables on the server, and creation of those that are missing.

What exists and differs from the plan is left as it is and reported as a problem for a person. There is one exception: a
durable that lacks some of the subjects is changed to deliver them too, because that is how a new version with one more
subject receives its messages. Additional subjects are not changed: an older version sees a newer one's durable that way.

A stream that was deleted is created again after a pause: one that is created while the server still deletes the old one may
keep its sequence numbers, lose its files, and from then on neither store nor answer a message (seen with nats-server
2.15.1, in one of twelve deletions under load without the pause, in none of eighty with half a second).
"""

from __future__ import annotations

__all__ = ["TopologyVerifier"]

import logging
from collections.abc import Callable, Collection, Iterable, Sequence

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from bus.jetstream.admin.configs import (
    NO_JETSTREAM,
    STREAM_NOT_FOUND,
    ensure,
    missing_subjects,
    planned_config,
    stream_config,
)
from bus.jetstream.admin.losses import LossDetector
from bus.jetstream.admin.server_config import ServerConfig, differences, read_consumer, read_stream
from bus.jetstream.admin.stalls import StallDetector
from bus.jetstream.admin.topology import ConsumerPlan, stream_plan
from bus.port import Clock

_ADVICE = "`python -m app topology --apply` corrects it, or reports what cannot be changed in place"

DELETION_SECONDS = 2.0
"""How long the deletion of a stream may take the server after the stream is no longer found."""

_log = logging.getLogger(__name__)


class TopologyVerifier:
    """
    Verifies streams and durables, creates them where that is permitted, and keeps the problems of each.

    *js* returns the current connection's JetStream context; *denied* what the server has denied on that connection;
    *may_exist* whether a stream has stored a message of this process, or has left one without an answer.
    """

    def __init__(
        self,
        js: Callable[[], JetStreamContext],
        denied: Callable[[], Collection[str]],
        clock: Clock,
        *,
        may_exist: Callable[[str], bool],
        replicas: int,
        dedup_seconds: float,
        ack_wait_seconds: float,
        max_tries: int,
        stalls: StallDetector,
        losses: LossDetector,
    ) -> None:
        self._js = js
        self._denied = denied
        self._clock = clock
        self._may_exist = may_exist
        self._replicas = replicas
        self._dedup_seconds = dedup_seconds
        self._ack_wait_seconds = ack_wait_seconds
        self._max_tries = max_tries
        self._stalls = stalls
        self._losses = losses
        self._problems: dict[str, tuple[str, ...]] = {}
        self._missed_streams: set[str] = set()
        self._found_streams: set[str] = set()
        """The streams that existed when they were looked at last."""
        self._unanswered_streams: set[str] = set()
        """Those of which the server has given no information when they were looked at last."""
        self._deleted_streams: set[str] = set()
        """Those whose deletion is waited for."""
        self._refusals: dict[str, str] = {}
        """By durable: why the server does not let this process add subjects to it."""

    @property
    def problems(self) -> Sequence[str]:
        return [f"{name}: {line}" for name, lines in sorted(self._problems.items()) for line in lines]

    def forget(self, plan: ConsumerPlan) -> None:
        """Drop the problems of a durable that this process no longer uses."""
        self._problems.pop(_consumer_label(plan), None)
        self._stalls.forget(_consumer_label(plan))

    def note_stream_exists(self, stream: str) -> None:
        """Note that *stream* has stored a message: it exists, whether or not this user may look at it."""
        if stream in self._missed_streams:
            self._missed_streams.discard(stream)
            self._set_problems(_stream_label(stream))

    async def verify_stream(self, name: str, *, is_missed: bool = True) -> bool:
        """
        Verify the stream *name*, or create it; return whether it exists now.

        Unless it *is_missed*, a missing permission to look at it is no problem.
        """
        label = _stream_label(name)
        wanted = self._stream_config(name)
        js = self._js()
        try:
            try:
                found = await read_stream(js, name)
            except NotFoundError as missing:
                await self._wait_for_deletion(name, missing)
                await ensure(js, [wanted])
                _log.info("%s is created", label)
                found = await read_stream(js, name)
        except (TimeoutError, nats.errors.Error) as error:
            self._unanswered_streams.add(name)
            if is_missed:
                self._missed_streams.add(name)
                self._set_problems(label, *self._reasons(error, name))
            return False
        self._missed_streams.discard(name)
        self._note_found(name)
        self._set_problems(label, *differences(wanted, found))
        self._losses.observe(label, found)
        return True

    async def verify_consumer(self, plan: ConsumerPlan) -> bool:
        """Verify the durable *plan*, or create it and its stream; return whether messages can be requested from it."""
        label = _consumer_label(plan)
        wanted = planned_config(plan, ack_wait_seconds=self._ack_wait_seconds, max_tries=self._max_tries)
        js = self._js()
        try:
            try:
                found = await read_consumer(js, plan.stream, plan.name)
            except NotFoundError as missing:
                await self._wait_for_deletion(plan.stream, missing)
                await ensure(js, [self._stream_config(plan.stream)], [(plan.stream, wanted)])
                _log.info("%s is created", label)
                found = await read_consumer(js, plan.stream, plan.name)
        except (TimeoutError, nats.errors.Error) as error:
            self._unanswered_streams.add(plan.stream)
            self._set_problems(label, *self._reasons(error, plan.stream))
            return False
        self._note_found(plan.stream)
        if missing_subjects(wanted, found.subjects):
            found = await self._add_subjects(js, plan, wanted, found)
        self._set_problems(label, *differences(wanted, found))
        self._stalls.observe(label, found)
        return True

    async def verify_again(self, streams: Iterable[str], plans: Sequence[ConsumerPlan], is_up: Callable[[], bool]) -> None:
        """Verify *streams*, and those of *plans*, and *plans* themselves, as long as the connection *is_up*."""
        for stream in sorted({*streams, *(plan.stream for plan in plans)}):
            if is_up() and not self._is_denied(stream):  # each attempt would wait in vain
                await self.verify_stream(stream, is_missed=False)
        for plan in plans:
            if is_up():
                await self.verify_consumer(plan)

    async def _wait_for_deletion(self, stream: str, missing: NotFoundError) -> None:
        """
        If *stream* itself is *missing* and may have existed before, wait until the server has deleted it completely.

        It may have if the server did not answer before: this process has then started during an outage.
        """
        may_have_existed = stream in self._found_streams or stream in self._unanswered_streams or self._may_exist(stream)
        if missing.err_code == STREAM_NOT_FOUND and may_have_existed:
            if stream not in self._deleted_streams:
                self._deleted_streams.add(stream)
                _log.warning("stream %s was deleted; it is created again in %g s", stream, DELETION_SECONDS)
            await self._clock.sleep(DELETION_SECONDS)
            self._found_streams.discard(stream)
            self._unanswered_streams.discard(stream)
            self._deleted_streams.discard(stream)

    def _note_found(self, stream: str) -> None:
        self._found_streams.add(stream)
        self._unanswered_streams.discard(stream)

    async def _add_subjects(
        self, js: JetStreamContext, plan: ConsumerPlan, wanted: ConsumerConfig, found: ServerConfig
    ) -> ServerConfig:
        subjects = sorted({*(wanted.filter_subjects or ()), *found.subjects})
        try:
            current = ConsumerConfig.from_response(dict(found.config))
            change = current.evolve(name=plan.name, filter_subject=None, filter_subjects=subjects)
            await js.add_consumer(plan.stream, change)
            changed = await read_consumer(js, plan.stream, plan.name)
        except (TimeoutError, nats.errors.Error) as error:
            missing = ", ".join(missing_subjects(wanted, found.subjects))
            label, text = _consumer_label(plan), f"cannot be changed to deliver {missing}: {error}"
            if self._refusals.get(label) != text:
                self._refusals[label] = text
                _log.warning("%s %s", label, text)
            return found
        self._refusals.pop(_consumer_label(plan), None)
        _log.info("%s delivers %s", _consumer_label(plan), ", ".join(subjects))
        return changed

    def _stream_config(self, name: str) -> StreamConfig:
        return stream_config(stream_plan(name), replicas=self._replicas, dedup_seconds=self._dedup_seconds)

    def _reasons(self, error: Exception, stream: str) -> list[str]:
        """
        Return what a person has to resolve; nothing for a server that is unavailable or has no leader now.

        A call without permission gets no answer at all; the connection receives the reason.
        """
        if isinstance(error, APIError) and (
            error.err_code in NO_JETSTREAM or not isinstance(error, ServiceUnavailableError)
        ):
            return [f"{error.description} ({error.err_code})"]
        name = f".{stream.lower()}"
        return [text for text in self._denied() if "$js.api" in text and name in text]

    def _is_denied(self, stream: str) -> bool:
        """Return whether the server has denied a look at *stream* on this connection."""
        return any(f'"$js.api.stream.info.{stream.lower()}"' in text for text in self._denied())

    def _set_problems(self, label: str, *lines: str) -> None:
        if lines == self._problems.get(label, ()):
            return
        if lines:
            self._problems[label] = lines
            _log.warning("%s: %s; %s", label, "; ".join(lines), _ADVICE)
        else:
            del self._problems[label]
            _log.info("%s is as planned", label)


def _stream_label(name: str) -> str:
    return f"stream {name}"


def _consumer_label(plan: ConsumerPlan) -> str:
    return f"consumer {plan.name} on {plan.stream}"
