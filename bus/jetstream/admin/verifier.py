"""
The ground that the bus stands on: streams and durables on the server, verified, and founded where they are missing.

What is there and not as planned stays as it is, and becomes a problem for a person. One thing is mended: a durable that
does not hear all of our subjects is made to, for that is how a new version with one more subject comes to its messages.
One that hears more is left alone, because it is how an older version sees it.
"""

from __future__ import annotations

__all__ = ["TopologyVerifier"]

import logging
from collections.abc import Callable, Collection, Sequence

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from bus.jetstream.admin.configs import (
    NO_JETSTREAM,
    consumer_config,
    differences,
    ensure,
    heard,
    lacking,
    stream_config,
)
from bus.jetstream.admin.topology import ConsumerPlan, stream_plan

_log = logging.getLogger(__name__)


class TopologyVerifier:
    """Verify streams and durables, found them where that is allowed, and remember what is wrong with each."""

    def __init__(
        self,
        js: Callable[[], JetStreamContext],
        denied: Callable[[], Collection[str]],
        *,
        replicas: int,
        dedup_seconds: float,
        ack_wait_seconds: float,
        max_tries: int,
    ) -> None:
        self._js = js
        self._denied = denied
        self._replicas = replicas
        self._dedup_seconds = dedup_seconds
        self._ack_wait_seconds = ack_wait_seconds
        self._max_tries = max_tries
        self._problems: dict[str, tuple[str, ...]] = {}
        self._missed: set[str] = set()

    @property
    def problems(self) -> Sequence[str]:
        return [f"{where}: {line}" for where, lines in sorted(self._problems.items()) for line in lines]

    def forget(self, plan: ConsumerPlan) -> None:
        """Let go of what is wrong with a durable that nobody here hears any more."""
        self._problems.pop(_where(plan), None)

    def takes_messages(self, stream: str) -> None:
        """Know that *stream* is there, whether or not we may look at it."""
        if stream in self._missed:
            self._missed.discard(stream)
            self._note(_stream(stream))

    async def stream(self, name: str, *, is_missed: bool = True) -> bool:
        """
        Verify the stream *name*, or found it; say whether it is there now.

        Unless it *is_missed*, it is no problem that we may not look at it.
        """
        where = _stream(name)
        wanted = self._stream_config(name)
        js = self._js()
        try:
            try:
                there = (await js.stream_info(name)).config
            except NotFoundError:
                await ensure(js, [wanted])
                _log.info("%s is founded", where)
                there = (await js.stream_info(name)).config
        except (TimeoutError, nats.errors.Error) as error:
            if is_missed:
                self._missed.add(name)
                self._note(where, *self._reasons(error, name))
            return False
        self._missed.discard(name)
        self._note(where, *differences(wanted, there))
        return True

    async def durable(self, plan: ConsumerPlan) -> bool:
        """Verify the durable *plan*, or found it and its stream; say whether it can be fetched from."""
        where = _where(plan)
        wanted = consumer_config(plan, ack_wait_seconds=self._ack_wait_seconds, max_tries=self._max_tries)
        js = self._js()
        try:
            try:
                there = (await js.consumer_info(plan.stream, plan.name)).config
            except NotFoundError:
                await ensure(js, [self._stream_config(plan.stream)], [(plan.stream, wanted)])
                _log.info("%s is founded", where)
                there = (await js.consumer_info(plan.stream, plan.name)).config
        except (TimeoutError, nats.errors.Error) as error:
            self._note(where, *self._reasons(error, plan.stream))
            return False
        if lacking(wanted, there):
            there = await self._widened(js, plan, wanted, there)
        self._note(where, *differences(wanted, there))
        return True

    async def _widened(
        self, js: JetStreamContext, plan: ConsumerPlan, wanted: ConsumerConfig, there: ConsumerConfig
    ) -> ConsumerConfig:
        both = sorted({*heard(wanted), *heard(there)})
        wider = there.evolve(name=plan.name, filter_subject=None, filter_subjects=both)
        try:
            config = (await js.add_consumer(plan.stream, wider)).config
        except (TimeoutError, nats.errors.Error) as error:
            _log.warning("%s cannot be made to hear %s: %s", _where(plan), ", ".join(lacking(wanted, there)), error)
            return there
        _log.info("%s hears %s", _where(plan), ", ".join(both))
        return config

    def _stream_config(self, name: str) -> StreamConfig:
        return stream_config(stream_plan(name), replicas=self._replicas, dedup_seconds=self._dedup_seconds)

    def _reasons(self, error: Exception, stream: str) -> list[str]:
        """
        Return what a person can do something about: no word of a server that is away or has no leader just now.

        What we may not do is not refused by an answer: there is none, and the connection hears why.
        """
        if isinstance(error, APIError) and (
            error.err_code in NO_JETSTREAM or not isinstance(error, ServiceUnavailableError)
        ):
            return [f"{error.description} ({error.err_code})"]
        name = f".{stream.lower()}"
        return [text for text in self._denied() if "$js.api" in text and name in text]

    def _note(self, where: str, *lines: str) -> None:
        if lines == self._problems.get(where, ()):
            return
        if lines:
            self._problems[where] = lines
            _log.warning("%s: %s", where, "; ".join(lines))
        else:
            del self._problems[where]
            _log.info("%s is as it should be", where)


def _stream(name: str) -> str:
    return f"stream {name}"


def _where(plan: ConsumerPlan) -> str:
    return f"consumer {plan.name} on {plan.stream}"
