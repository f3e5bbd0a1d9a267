"""
What an operator does about a plan: see where the server differs from it, and make the server agree.

Everything is read back from the server; what was asked for is no evidence. Nothing is ever deleted here: a stream holds
messages, and a durable knows how far its group has come. What the server will not change in place is said, and stays.
"""

from __future__ import annotations

__all__ = ["AWAY", "DEDUP_SECONDS", "Change", "apply", "drift", "planned_config"]

from collections.abc import Awaitable, Callable, Iterator

from attrs import frozen
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from bus.founding import consumer_config, differences, heard, stream_config
from bus.port import ACK_WAIT_SECONDS, MAX_TRIES
from bus.topology import ADVISORIES, ConsumerPlan, Topology

DEDUP_SECONDS = 120.0

FOR_EVER = -1
"""Tries of a durable that hears advisories: what it says must not be lost while a database is away."""

AWAY = (TimeoutError, NoRespondersError, NoStreamResponseError, ServiceUnavailableError)
"""Nobody answers: the server is away, has no JetStream, or an election is under way. It says nothing about what is there."""


@frozen
class Change:
    """One line for the operator: what was done, or with *is_refused*, what the server would not do."""

    line: str
    is_refused: bool = False


@frozen
class _Item:
    """One thing to be there, and the calls that look at it, make it and change it."""

    name: str
    wanted: StreamConfig | ConsumerConfig
    look: Callable[[], Awaitable[StreamConfig | ConsumerConfig]]
    create: Callable[[], Awaitable[object]]
    update: Callable[[], Awaitable[object]]


def planned_config(
    plan: ConsumerPlan, *, ack_wait_seconds: float = ACK_WAIT_SECONDS, max_tries: int = MAX_TRIES
) -> ConsumerConfig:
    """Return how the durable *plan* is to hand out; one that hears advisories does so until somebody has taken them."""
    tries = FOR_EVER if plan.stream == ADVISORIES else max_tries
    return consumer_config(plan, ack_wait_seconds=ack_wait_seconds, max_tries=tries)


async def drift(
    js: JetStreamContext,
    topology: Topology,
    *,
    replicas: int,
    ack_wait_seconds: float = ACK_WAIT_SECONDS,
    max_tries: int = MAX_TRIES,
    dedup_seconds: float = DEDUP_SECONDS,
) -> list[str]:
    """
    Say, a line each, where the server differs from *topology*; nothing when it is as planned.

    Raises:
        TimeoutError: Nobody answers, or there is no JetStream (`AWAY` names all that may come).
        nats.js.errors.APIError: We may not look.
    """
    lines: list[str] = []
    for item in _items(js, topology, replicas, ack_wait_seconds, max_tries, dedup_seconds):
        found = await _look(item)
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
) -> list[Change]:
    """
    Make what is missing of *topology* and change what differs; return what that came to.

    What cannot be changed in place is left as it is and returned as refused. Applying again what is as planned changes
    nothing and returns nothing.

    Raises:
        TimeoutError: As `drift` does.
    """
    changes: list[Change] = []
    for item in _items(js, topology, replicas, ack_wait_seconds, max_tries, dedup_seconds):
        try:
            found = await _look(item)
            if found is None:
                await item.create()
                changes.append(Change(f"{item.name}: created"))
                found = await item.look()
            elif before := _differences(item, found):
                await item.update()
                found = await item.look()
                after = _differences(item, found)
                done = [line.replace(" is ", " was ", 1) for line in before if line not in after]
                changes += [Change(f"{item.name}: changed, {line}") for line in done]
            changes += [Change(f"{item.name}: still {line}", True) for line in _differences(item, found)]
        except APIError as error:
            if isinstance(error, AWAY):
                raise
            changes.append(Change(f"{item.name}: the server refuses: {error.description or error}", True))
    return changes


async def _look(item: _Item) -> StreamConfig | ConsumerConfig | None:
    try:
        return await item.look()
    except NotFoundError:
        return None


def _differences(item: _Item, found: StreamConfig | ConsumerConfig) -> list[str]:
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
) -> Iterator[_Item]:
    """Return all of *topology*, streams first: a durable needs its stream."""
    for stream in topology.streams:
        yield _stream(js, stream_config(stream, replicas=replicas, dedup_seconds=dedup_seconds))
    for consumer in topology.consumers:
        config = planned_config(consumer, ack_wait_seconds=ack_wait_seconds, max_tries=max_tries)
        yield _consumer(js, consumer, config)


def _stream(js: JetStreamContext, wanted: StreamConfig) -> _Item:
    name = wanted.name or ""

    async def look() -> StreamConfig:
        return (await js.stream_info(name)).config

    return _Item(f"stream {name}", wanted, look, lambda: js.add_stream(wanted), lambda: js.update_stream(wanted))


def _consumer(js: JetStreamContext, plan: ConsumerPlan, wanted: ConsumerConfig) -> _Item:
    async def look() -> ConsumerConfig:
        config: ConsumerConfig = (await js.consumer_info(plan.stream, plan.name)).config
        return config

    async def put() -> object:
        return await js.add_consumer(plan.stream, wanted)

    return _Item(f"consumer {plan.name} on {plan.stream}", wanted, look, put, put)
