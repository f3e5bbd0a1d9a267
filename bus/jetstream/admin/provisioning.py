"""
Comparison of a server with a plan, and the changes that make the server agree; used by an operator.

Results are read back from the server: that a change was requested does not prove it. Nothing is deleted here, because a
stream holds messages and a durable holds the position of its group. What the server cannot change in place is reported
and stays.

A cluster that has just started elects a leader first and answers no request, so each request is repeated for a while.
That is safe: whatever was done late is found as planned. The node that answers may also learn a moment later than the
leader what was created, so "not found" is no answer about a stream or consumer that this call has created.
"""

from __future__ import annotations

__all__ = ["UNAVAILABLE_ERRORS", "Change", "apply", "diff"]

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import TypeVar

import stamina
from attrs import frozen
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from bus.jetstream.admin.configs import NO_JETSTREAM, planned_config, stream_config
from bus.jetstream.admin.server_config import ServerConfig, differences, read_consumer, read_stream, with_chosen_fields
from bus.jetstream.admin.topology import ConsumerPlan, Topology
from bus.port import ACK_WAIT_SECONDS, DEDUP_SECONDS, MAX_TRIES

PATIENCE_SECONDS = 30.0
"""For how long a request is repeated to a server that does not answer."""

UNAVAILABLE_ERRORS = (TimeoutError, NoRespondersError, NoStreamResponseError, ServiceUnavailableError)
"""No answer: the server is down, has no JetStream, or is electing a leader. Nothing is known about streams and consumers."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@frozen
class Change:
    """One line for the operator: what was done, or if it *is_refused*, what the server did not do."""

    line: str
    is_refused: bool = False


@frozen
class _Resource:
    """A planned stream, or consumer on *stream*, and the requests that read, create and update it; each may be repeated."""

    name: str
    stream: str
    wanted: StreamConfig | ConsumerConfig
    read: Callable[[], Awaitable[ServerConfig]]
    create: Callable[[], Awaitable[object]]
    update: Callable[[], Awaitable[object]]


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
    Describe, a line each, where the server differs from *topology*; an empty list when it is as planned.

    Raises:
        TimeoutError: The server has not answered for *patience_seconds*, or has no JetStream (`UNAVAILABLE_ERRORS` lists
            all errors of this kind).
        nats.js.errors.APIError: The user may not look.
    """
    lines: list[str] = []
    for resource in _resources(js, topology, replicas, ack_wait_seconds, max_tries, dedup_seconds):
        found = await _answer(partial(_read_if_exists, resource), patience_seconds)
        if found is None:
            lines.append(f"{resource.name} is missing")
        else:
            lines += [f"{resource.name}: {difference}" for difference in _differences(resource, found)]
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
    Create what is missing of *topology* and update what differs; return the changes.

    What cannot be changed in place is left as it is and returned as refused. A second call on a server that is as planned
    changes nothing and returns an empty list.

    Raises:
        TimeoutError: As `diff` does.
    """
    changes: list[Change] = []
    created: set[str] = set()
    for resource in _resources(js, topology, replicas, ack_wait_seconds, max_tries, dedup_seconds):
        try:
            async for change in _apply_one(resource, created, patience_seconds):
                changes.append(change)
        except APIError as error:
            if isinstance(error, UNAVAILABLE_ERRORS):
                raise
            changes.append(Change(f"{resource.name}: the server refuses: {error.description or error}", True))
    return changes


async def _apply_one(resource: _Resource, created: set[str], patience_seconds: float) -> AsyncIterator[Change]:
    """
    Create or update *resource*; yield what has changed, and what still differs as refused.

    *created* names the streams that are new, and receives the name of each stream that is created here.
    """
    found = await _answer(partial(_read_if_exists, resource), patience_seconds)
    if found is None:
        await _answer(resource.create, patience_seconds, is_new=resource.stream in created)
        created.add(resource.stream)
        yield Change(f"{resource.name}: created")
        found = await _answer(resource.read, patience_seconds, is_new=True)
    elif before := _differences(resource, found):
        await _answer(resource.update, patience_seconds)
        found = await _answer(resource.read, patience_seconds)
        after = _differences(resource, found)
        for line in before:
            if line not in after:
                yield Change(f"{resource.name}: changed, {line.replace(' is ', ' was ', 1)}")
    for line in _differences(resource, found):
        yield Change(f"{resource.name}: still {line}", True)


async def _answer(request: Callable[[], Awaitable[T]], patience_seconds: float, *, is_new: bool = False) -> T:
    """
    Return the answer to *request*, which is repeated with exponential back-off while there is none.

    If the stream or consumer *is_new*, it is also repeated while it is not found.
    """
    is_not_found = False

    def may_answer_later(error: Exception) -> bool:
        nonlocal is_not_found
        is_not_found = is_new and isinstance(error, NotFoundError)
        return is_not_found or _may_answer_later(error)

    async for attempt in stamina.retry_context(
        may_answer_later, attempts=None, timeout=patience_seconds, wait_max=2.0, wait_jitter=0.1
    ):
        with attempt:
            if attempt.num == 2 and not is_not_found:
                _log.warning("JetStream does not answer; retrying for %g s", patience_seconds)
            return await request()
    raise AssertionError("the last attempt returns or raises")


def _may_answer_later(error: Exception) -> bool:
    """Distinguish a cluster that is electing a leader, or is slow, from a server that has no JetStream and will not get it."""
    if isinstance(error, ServiceUnavailableError):
        return error.err_code is not None and error.err_code not in NO_JETSTREAM
    return isinstance(error, TimeoutError)


async def _read_if_exists(resource: _Resource) -> ServerConfig | None:
    try:
        return await resource.read()
    except NotFoundError:
        return None


def _differences(resource: _Resource, found: ServerConfig) -> list[str]:
    """Return what differs. For an operator, additional filter subjects of a durable are a difference, too."""
    lines = differences(resource.wanted, found)
    if found.paused:
        lines.append(f"paused until {found.paused}")
    if isinstance(resource.wanted, ConsumerConfig):
        planned, existing = resource.wanted.filter_subjects or (), found.subjects
        lines += [f"filter_subjects has {subject} beyond the plan" for subject in sorted(set(existing) - set(planned))]
    return lines


def _resources(
    js: JetStreamContext,
    topology: Topology,
    replicas: int,
    ack_wait_seconds: float,
    max_tries: int,
    dedup_seconds: float,
) -> Iterator[_Resource]:
    """Yield all resources of *topology*, streams first: a durable needs its stream."""
    for stream in topology.streams:
        yield _stream_resource(js, stream_config(stream, replicas=replicas, dedup_seconds=dedup_seconds))
    for consumer in topology.consumers:
        config = planned_config(consumer, ack_wait_seconds=ack_wait_seconds, max_tries=max_tries)
        yield _consumer_resource(js, consumer, config)


def _stream_resource(js: JetStreamContext, wanted: StreamConfig) -> _Resource:
    name = wanted.name or ""

    async def read() -> ServerConfig:
        return await read_stream(js, name)

    async def update() -> object:
        return await js.update_stream(with_chosen_fields(wanted, await read()))

    return _Resource(f"stream {name}", name, wanted, read, lambda: js.add_stream(wanted), update)


def _consumer_resource(js: JetStreamContext, plan: ConsumerPlan, wanted: ConsumerConfig) -> _Resource:
    async def read() -> ServerConfig:
        return await read_consumer(js, plan.stream, plan.name)

    async def create() -> object:
        return await js.add_consumer(plan.stream, wanted)

    async def update() -> object:
        found = await read()
        if found.paused:
            await js.resume_consumer(plan.stream, plan.name)
        return await js.add_consumer(plan.stream, with_chosen_fields(wanted, found))

    name = f"consumer {plan.name} on {plan.stream}"
    return _Resource(name, plan.stream, wanted, read, create, update)
