"""
How a plan becomes a stream or a durable on the server: the configuration, the founding, and what differs.

Founding never changes what is there: an operator may have had reasons. What is there and differs is said in words,
field by field, for a person to put right.
"""

from __future__ import annotations

__all__ = [
    "AGE_MAX_SECONDS",
    "NO_JETSTREAM",
    "consumer_config",
    "differences",
    "ensure",
    "heard",
    "lacking",
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
"""How long a stream keeps a message: less than an inbox remembers it, so that no second hearing goes unrecognised."""

NO_JETSTREAM = (10039, 10076)
"""The server's codes for: not for this account, or not on this server at all."""

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
    """Return how the stream *plan* is to be kept: on disk, up to its age, refusing what is new when it is full."""
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
    """Return how the durable *plan* is to hand out: everything the stream has, to be acknowledged one by one."""
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
    Create what is missing of *streams* and of *consumers* (stream name and configuration); leave alone what is there.

    Raises:
        nats.errors.Error: The server does not do it, or does not answer (`TimeoutError`).
    """
    for stream in streams:
        assert stream.name is not None
        try:
            await js.stream_info(stream.name)
        except NotFoundError:
            try:
                await js.add_stream(stream)
            except BadRequestError as error:
                if error.err_code != _STREAM_NAME_IN_USE:  # somebody else was quicker
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


def differences(wanted: StreamConfig | ConsumerConfig, there: StreamConfig | ConsumerConfig) -> list[str]:
    """
    Say in which fields *there* is not as *wanted*: ``max_deliver is 3, not 5``.

    A durable that hears more than wanted is no difference: a newer or older version of us beside this one may need it.
    """
    fields = _STREAM_FIELDS if isinstance(wanted, StreamConfig) else _CONSUMER_FIELDS
    lines = []
    for name in fields:
        want, has = _plain(getattr(wanted, name)), _plain(getattr(there, name))
        if want != has:
            lines.append(f"{name} is {_said(has)}, not {_said(want)}")
    if isinstance(wanted, ConsumerConfig) and isinstance(there, ConsumerConfig):
        lines += [f"filter_subjects lacks {subject}" for subject in lacking(wanted, there)]
    return lines


def lacking(wanted: ConsumerConfig, there: ConsumerConfig) -> list[str]:
    """Return the subjects that *wanted* hears and *there* does not."""
    return sorted(set(heard(wanted)) - set(heard(there))) if heard(there) else []


def heard(config: ConsumerConfig) -> list[str]:
    """Return the subjects that a durable of this *config* hears; none means all of its stream."""
    return config.filter_subjects or ([config.filter_subject] if config.filter_subject else [])


def _plain(value: object) -> object:
    if isinstance(value, list):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value or None


def _said(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
