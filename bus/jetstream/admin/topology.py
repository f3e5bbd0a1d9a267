"""
The streams and durable consumers that the service needs on a broker, as a plan.

A plan is computed from module descriptors without a broker. It is printed for an operator, applied by a user who may
provision, and compared with what the broker has. A stream stores everything that one module publishes. A consumer group
that subscribes to several modules is one durable of its name on each of their streams.

Printing a plan must not import nats, so this module does not.
"""

from __future__ import annotations

__all__ = [
    "ADVISORIES",
    "ADVISORIES_PLAN",
    "DEAD_LETTERS",
    "DEAD_LETTERS_PLAN",
    "ConsumerPlan",
    "StreamPlan",
    "Topology",
    "advisory_consumer_plan",
    "advisory_subject",
    "consumer_plans",
    "stream_name",
    "stream_plan",
]

from collections.abc import Iterable, Mapping, Sequence

from attrs import evolve, frozen

from bus.subjects import is_express, module_of

DEAD_LETTERS = "DEAD_LETTERS"
ADVISORIES = "ADVISORIES"

ACK_PENDING_MAX = 1_024
EXPRESS_ACK_PENDING_MAX = 256


@frozen
class StreamPlan:
    """A stream, and the subjects that it stores (wildcards allowed)."""

    name: str
    subjects: tuple[str, ...]


@frozen
class ConsumerPlan:
    """A durable consumer: its name, its stream, and the subjects that it delivers, without wildcards."""

    name: str
    stream: str
    subjects: tuple[str, ...]
    ack_pending_max: int


@frozen
class Topology:
    """All streams and all consumers."""

    streams: tuple[StreamPlan, ...]
    consumers: tuple[ConsumerPlan, ...]

    @classmethod
    def of(cls, modules: Iterable[str], subscriptions: Mapping[str, Sequence[str]]) -> Topology:
        """
        Return the plan for *modules*, one stream each, and for *subscriptions*, the subjects by consumer name.

        Raises:
            ValueError: A consumer subscribes to a subject that is in none of these streams.
        """
        streams = tuple(stream_plan(stream_name(module)) for module in modules)
        consumers = tuple(plan for name, subjects in subscriptions.items() for plan in consumer_plans(name, subjects))
        names = {stream.name for stream in streams}
        for plan in consumers:
            if plan.stream not in names:
                raise ValueError(f"{plan.name} consumes {plan.subjects[0]}, and there is no stream {plan.stream}")
        return cls((*streams, DEAD_LETTERS_PLAN, ADVISORIES_PLAN), consumers)

    def with_consumers(self, more: Iterable[ConsumerPlan]) -> Topology:
        """Return the plan with *more* consumers."""
        return evolve(self, consumers=(*self.consumers, *more))


_MAX_DELIVERIES = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES"
_DEAD = "dead"
DEAD_LETTERS_PLAN = StreamPlan(DEAD_LETTERS, (f"{_DEAD}.>",))
ADVISORIES_PLAN = StreamPlan(ADVISORIES, (f"{_MAX_DELIVERIES}.>",))
"""The broker publishes an advisory once, to the subscribers of that moment; a stream keeps it until it is processed."""


def stream_name(subject: str) -> str:
    """Return the name of the stream that stores *subject*: its first token in capitals, or the stream of the dead letters."""
    first = subject.partition(".")[0]
    return DEAD_LETTERS if first == _DEAD else first.upper()


def stream_plan(name: str) -> StreamPlan:
    """Return the plan of the stream *name*."""
    return {DEAD_LETTERS: DEAD_LETTERS_PLAN, ADVISORIES: ADVISORIES_PLAN}.get(name) or StreamPlan(name, (f"{name.lower()}.>",))


def consumer_plans(consumer: str, subjects: Sequence[str]) -> tuple[ConsumerPlan, ...]:
    """Return the durables that make up the group *consumer*: one for each stream that stores some of *subjects*."""
    by_stream: dict[str, list[str]] = {}
    for subject in subjects:
        by_stream.setdefault(stream_name(subject), []).append(subject)
    return tuple(
        ConsumerPlan(
            consumer,
            stream,
            tuple(sorted(names)),
            EXPRESS_ACK_PENDING_MAX if all(map(is_express, names)) else ACK_PENDING_MAX,
        )
        for stream, names in sorted(by_stream.items())
    )


def advisory_subject(stream: str, consumer: str) -> str:
    """Return the subject on which the broker announces that *consumer* has had its last try at a message of *stream*."""
    return f"{_MAX_DELIVERIES}.{stream}.{consumer}"


def advisory_consumer_plan(module: str, consumers: Iterable[ConsumerPlan]) -> ConsumerPlan:
    """
    Return the durable that delivers to *module* the advisories about last tries of its *consumers*.

    `bus.jetstream.recovery.exhausted_deliveries` consumes it. Without consumers it waits for an advisory that never comes:
    a durable without subjects would get every advisory.
    """
    subjects = sorted({advisory_subject(plan.stream, plan.name) for plan in consumers if module_of(plan.name) == module})
    subjects = subjects or [advisory_subject(stream_name(module), module)]
    return ConsumerPlan(f"patrol-{module}", ADVISORIES, tuple(subjects), ACK_PENDING_MAX)
