"""
What an operator does about a plan: see where the server differs from it, and make the server agree.

Everything is read back from the server; what was asked for is no evidence. Nothing is ever deleted here: a stream holds
messages, and a durable knows how far its group has come. What the server will not change in place is said, and stays.

A cluster that has just come up chooses its leader first and answers nobody, so each question is put again for a while.
That is safe: whatever was done late is found as it should be.
"""

from __future__ import annotations

__all__ = ["DEDUP_SECONDS", "UNAVAILABLE_ERRORS", "Change", "apply", "diff", "planned_config"]

import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TypeVar

import stamina
from attrs import frozen
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from bus.jetstream.admin.configs import NO_JETSTREAM, consumer_config, differences, heard, stream_config
from bus.jetstream.admin.topology import ADVISORIES, ConsumerPlan, Topology
from bus.port import ACK_WAIT_SECONDS, MAX_TRIES

DEDUP_SECONDS = 120.0

PATIENCE_SECONDS = 30.0
"""How long a server that does not answer is asked again."""

UNLIMITED = -1
"""Tries of a durable that hears advisories: what it says must not be lost while a database is away."""

UNAVAILABLE_ERRORS = (TimeoutError, NoRespondersError, NoStreamResponseError, ServiceUnavailableError)
"""Nobody answers: the server is away, has no JetStream, or an election is under way. It says nothing about what is there."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@frozen
class Change:
    """One line for the operator: what was done, or with *is_refused*, what the server would not do."""

    line: str
    is_refused: bool = False


@frozen
class _Resource:
    """One thing to be there, and what looks at it, makes it and changes it. Each may be done again."""

    name: str
    wanted: StreamConfig | ConsumerConfig
    look: Callable[[], Awaitable[StreamConfig | ConsumerConfig]]
    create: Callable[[], Awaitable[object]]
    update: Callable[[], Awaitable[object]]


def planned_config(
    plan: ConsumerPlan, *, ack_wait_seconds: float = ACK_WAIT_SECONDS, max_tries: int = MAX_TRIES
) -> ConsumerConfig:
    """Return how the durable *plan* is to hand out; one that hears advisories does so until somebody has taken them."""
    tries = UNLIMITED if plan.stream == ADVISORIES else max_tries
    return consumer_config(plan, ack_wait_seconds=ack_wait_seconds, max_tries=tries)


async def diff(
    js: JetStreamContext,
    topology: Topology,
    *,
    replicas: int,
    ack_wait_seconds: float = ACK_WAIT_SECONDS,
    max_tries: int = MAX_TRIES,
    dedup_seconds: float = DEDUP_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
) -> list[str]:
    """
    Say, a line each, where the server differs from *topology*; nothing when it is as planned.

    Raises:
        TimeoutError: Nobody has answered for *patience_seconds*, or there is no JetStream (`UNAVAILABLE_ERRORS` names all that may come).
        nats.js.errors.APIError: We may not look.
    """
    lines: list[str] = []
    for item in _items(js, topology, replicas, ack_wait_seconds, max_tries, dedup_seconds):
        found = await _answered(partial(_look, item), patience_seconds)
        if found is None:
            lines.append(f"{item.name} is missing")
        else:
            lines += [f"{item.name}: {difference}" for difference in _differences(item, found)]
    return lines


async def apply(
    js: JetStreamContext,
    topology: Topology,
    *,
    replicas: int,
    ack_wait_seconds: float = ACK_WAIT_SECONDS,
    max_tries: int = MAX_TRIES,
    dedup_seconds: float = DEDUP_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
) -> list[Change]:
    """
    Make what is missing of *topology* and change what differs; return what that came to.

    What cannot be changed in place is left as it is and returned as refused. Applying again what is as planned changes
    nothing and returns nothing.

    Raises:
        TimeoutError: As `diff` does.
    """
    changes: list[Change] = []
    for item in _items(js, topology, replicas, ack_wait_seconds, max_tries, dedup_seconds):
        try:
            found = await _answered(partial(_look, item), patience_seconds)
            if found is None:
                await _answered(item.create, patience_seconds)
                changes.append(Change(f"{item.name}: created"))
                found = await _answered(item.look, patience_seconds)
            elif before := _differences(item, found):
                await _answered(item.update, patience_seconds)
                found = await _answered(item.look, patience_seconds)
                after = _differences(item, found)
                done = [line.replace(" is ", " was ", 1) for line in before if line not in after]
                changes += [Change(f"{item.name}: changed, {line}") for line in done]
            changes += [Change(f"{item.name}: still {line}", True) for line in _differences(item, found)]
        except APIError as error:
            if isinstance(error, UNAVAILABLE_ERRORS):
                raise
            changes.append(Change(f"{item.name}: the server refuses: {error.description or error}", True))
    return changes


async def _answered(ask: Callable[[], Awaitable[T]], patience_seconds: float) -> T:
    """Return the answer to *ask*, which is asked again with exponential back-off while nobody gives one."""
    async for attempt in stamina.retry_context(_may_answer_yet, attempts=None, timeout=patience_seconds, wait_max=2.0):
        with attempt:
            if attempt.num == 2:
                _log.warning("JetStream does not answer; asking again for %g s", patience_seconds)
            return await ask()
    raise AssertionError("the last attempt returns or raises")


def _may_answer_yet(error: Exception) -> bool:
    """Tell a cluster that chooses its leader, or is slow, from a server that has no JetStream and will not get it."""
    if isinstance(error, ServiceUnavailableError):
        return error.err_code is not None and error.err_code not in NO_JETSTREAM
    return isinstance(error, TimeoutError)


async def _look(item: _Resource) -> StreamConfig | ConsumerConfig | None:
    try:
        return await item.look()
    except NotFoundError:
        return None


def _differences(item: _Resource, found: StreamConfig | ConsumerConfig) -> list[str]:
    """Return what differs; to an operator, a durable that hears more than planned differs, too."""
    lines = differences(item.wanted, found)
    if isinstance(item.wanted, ConsumerConfig) and isinstance(found, ConsumerConfig):
        planned, there = heard(item.wanted), heard(found)
        if not there:
            lines.append("filter_subjects is all of the stream")
        lines += [f"filter_subjects has {subject} beyond the plan" for subject in sorted(set(there) - set(planned))]
    return lines


def _items(
    js: JetStreamContext,
    topology: Topology,
    replicas: int,
    ack_wait_seconds: float,
    max_tries: int,
    dedup_seconds: float,
) -> Iterator[_Resource]:
    """Return all of *topology*, streams first: a durable needs its stream."""
    for stream in topology.streams:
        yield _stream(js, stream_config(stream, replicas=replicas, dedup_seconds=dedup_seconds))
    for consumer in topology.consumers:
        config = planned_config(consumer, ack_wait_seconds=ack_wait_seconds, max_tries=max_tries)
        yield _consumer(js, consumer, config)


def _stream(js: JetStreamContext, wanted: StreamConfig) -> _Resource:
    name = wanted.name or ""

    async def look() -> StreamConfig:
        return (await js.stream_info(name)).config

    return _Resource(f"stream {name}", wanted, look, lambda: js.add_stream(wanted), lambda: js.update_stream(wanted))


def _consumer(js: JetStreamContext, plan: ConsumerPlan, wanted: ConsumerConfig) -> _Resource:
    async def look() -> ConsumerConfig:
        config: ConsumerConfig = (await js.consumer_info(plan.stream, plan.name)).config
        return config

    async def put() -> object:
        return await js.add_consumer(plan.stream, wanted)

    return _Resource(f"consumer {plan.name} on {plan.stream}", wanted, look, put, put)
