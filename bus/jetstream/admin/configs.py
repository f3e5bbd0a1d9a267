"""
Stream and consumer configurations: how a plan becomes one, how it is created, and how it differs from the server's.

Creation never changes what exists: an operator may have had reasons. A difference is described field by field, for a
person to resolve.
"""

from __future__ import annotations

__all__ = [
    "AGE_MAX_SECONDS",
    "NO_JETSTREAM",
    "consumer_config",
    "differences",
    "ensure",
    "filter_subjects",
    "missing_subjects",
    "stream_config",
]

from collections.abc import Iterable
from enum import Enum

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

from bus.jetstream.admin.topology import ConsumerPlan, StreamPlan

AGE_MAX_SECONDS = 47 * 3600.0
"""How long a stream keeps a message: less than an inbox keeps its id, so that no late redelivery goes unrecognised."""

NO_JETSTREAM = (10039, 10076)
"""The server's error codes for: JetStream is not enabled for this account, or not on this server at all."""

_STREAM_NAME_IN_USE = 10058
_CONSUMER_EXISTS = 10148

_STREAM_FIELDS = ("subjects", "retention", "discard", "max_age", "duplicate_window", "num_replicas", "storage")
_CONSUMER_FIELDS = (
    "ack_policy",
    "ack_wait",
    "backoff",
    "deliver_policy",
    "deliver_subject",
    "max_ack_pending",
    "max_deliver",
)


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


def differences(wanted: StreamConfig | ConsumerConfig, found: StreamConfig | ConsumerConfig) -> list[str]:
    """
    Describe the fields in which *found* differs from *wanted*: ``max_deliver is 3, not 5``.

    Additional filter subjects are no difference: an older or newer version of the service that runs beside this one may
    need them.
    """
    fields = _STREAM_FIELDS if isinstance(wanted, StreamConfig) else _CONSUMER_FIELDS
    lines = []
    for name in fields:
        want, has = _plain(getattr(wanted, name)), _plain(getattr(found, name))
        if want != has:
            lines.append(f"{name} is {_text(has)}, not {_text(want)}")
    if isinstance(wanted, ConsumerConfig) and isinstance(found, ConsumerConfig):
        lines += [f"filter_subjects lacks {subject}" for subject in missing_subjects(wanted, found)]
    return lines


def missing_subjects(wanted: ConsumerConfig, found: ConsumerConfig) -> list[str]:
    """Return the subjects that *wanted* delivers and *found* does not."""
    return sorted(set(filter_subjects(wanted)) - set(filter_subjects(found))) if filter_subjects(found) else []


def filter_subjects(config: ConsumerConfig) -> list[str]:
    """Return the subjects that a durable of this *config* delivers; an empty list stands for all of its stream."""
    return config.filter_subjects or ([config.filter_subject] if config.filter_subject else [])


def _plain(value: object) -> object:
    if isinstance(value, list):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value or None


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
