"""
Stream and consumer configurations: how a plan becomes one, and how it is created.

Creation never changes what exists: an operator may have had reasons. `bus.jetstream.admin.server_config` describes the
differences, for a person to resolve.
"""

from __future__ import annotations

__all__ = [
    "AGE_MAX_SECONDS",
    "NO_JETSTREAM",
    "STREAM_NOT_FOUND",
    "UNLIMITED",
    "consumer_config",
    "ensure",
    "filter_subjects",
    "missing_subjects",
    "planned_config",
    "stream_config",
]

from collections.abc import Collection, Iterable

from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    ReplayPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import BadRequestError, NotFoundError

from bus.jetstream.admin.topology import ADVISORIES, ConsumerPlan, StreamPlan
from bus.port import ACK_WAIT_SECONDS, MAX_TRIES

AGE_MAX_SECONDS = 47 * 3600.0
"""How long a stream keeps a message: less than an inbox keeps its id, so that no late redelivery goes unrecognised."""

UNLIMITED = -1
"""Tries of a durable that delivers advisories: they must not be lost while a database is unavailable."""

NO_JETSTREAM = (10039, 10076)
"""The server's error codes for: JetStream is not enabled for this account, or not on this server at all."""

STREAM_NOT_FOUND = 10059
"""The server's error code for: there is no such stream; a durable that is missing on a stream has another one."""

_STREAM_NAME_IN_USE = 10058
_CONSUMER_EXISTS = 10148


def stream_config(plan: StreamPlan, *, replicas: int, dedup_seconds: float) -> StreamConfig:
    """Return the configuration of the stream *plan*: on disk, limited by age, refusing new messages when it is full."""
    return StreamConfig(
        name=plan.name,
        subjects=list(plan.subjects),
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.NEW,
        max_age=AGE_MAX_SECONDS,
        duplicate_window=dedup_seconds,
        num_replicas=replicas,
        storage=StorageType.FILE,
    )


def consumer_config(plan: ConsumerPlan, *, ack_wait_seconds: float, max_tries: int) -> ConsumerConfig:
    """Return the configuration of the durable *plan*: it delivers all of the stream, and each message is acknowledged."""
    return ConsumerConfig(
        name=plan.name,
        durable_name=plan.name,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        replay_policy=ReplayPolicy.INSTANT,
        ack_wait=ack_wait_seconds,
        max_deliver=max_tries,
        max_ack_pending=plan.ack_pending_max,
        filter_subjects=list(plan.subjects),
    )


def planned_config(
    plan: ConsumerPlan, *, ack_wait_seconds: float = ACK_WAIT_SECONDS, max_tries: int = MAX_TRIES
) -> ConsumerConfig:
    """Return the configuration of the durable *plan*; one that delivers advisories has no limit of tries."""
    tries = UNLIMITED if plan.stream == ADVISORIES else max_tries
    return consumer_config(plan, ack_wait_seconds=ack_wait_seconds, max_tries=tries)


async def ensure(
    js: JetStreamContext,
    streams: Iterable[StreamConfig] = (),
    consumers: Iterable[tuple[str, ConsumerConfig]] = (),
) -> None:
    """
    Create what is missing of *streams* and of *consumers* (stream name and configuration); leave alone what exists.

    Raises:
        nats.errors.Error: The server refuses, or does not answer (`TimeoutError`).
    """
    for stream in streams:
        assert stream.name is not None
        try:
            await js.stream_info(stream.name)
        except NotFoundError:
            try:
                await js.add_stream(stream)
            except BadRequestError as error:
                if error.err_code != _STREAM_NAME_IN_USE:  # another process has created it meanwhile
                    raise
    for name, consumer in consumers:
        assert consumer.durable_name is not None
        try:
            await js.consumer_info(name, consumer.durable_name)
        except NotFoundError:
            try:
                await js.add_consumer(name, consumer)
            except BadRequestError as error:
                if error.err_code != _CONSUMER_EXISTS:
                    raise


def missing_subjects(wanted: ConsumerConfig, delivered: Collection[str]) -> list[str]:
    """Return the subjects of *wanted* that are not among *delivered*, those of a durable; none if that delivers all of its stream."""
    return sorted(set(filter_subjects(wanted)) - set(delivered)) if delivered else []


def filter_subjects(config: ConsumerConfig) -> list[str]:
    """Return the subjects that a durable of this *config* delivers; an empty list means all of its stream."""
    return config.filter_subjects or ([config.filter_subject] if config.filter_subject else [])
