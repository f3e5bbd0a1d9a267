"""
What a broker has to hold for us: streams, and the durable consumers on them.

A plan, nothing more: it is made from door plates without asking anybody, printed by an operator, applied by whoever may
provision, and compared with what is really there. A stream carries everything that one module says. A group that hears
several modules is one durable of its name on each of their streams.
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

from bus.replay_subjects import module_of
from bus.subjects import is_express

DEAD_LETTERS = "DEAD_LETTERS"
ADVISORIES = "ADVISORIES"

ACK_PENDING_MAX = 1_024
EXPRESS_ACK_PENDING_MAX = 256


@frozen
class StreamPlan:
    """A stream, and the subjects it keeps (wildcards allowed)."""

    name: str
    subjects: tuple[str, ...]


@frozen
class ConsumerPlan:
    """A durable consumer: its name, its stream, and the subjects that it hears from there, in full."""

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
    def of(cls, modules: Iterable[str], hears: Mapping[str, Sequence[str]]) -> Topology:
        """
        Return the plan for *modules*, one stream each, and for the consumers in *hears*, by name, with their subjects.

        Raises:
            ValueError: Somebody hears a subject that is in none of these streams.
        """
        streams = tuple(stream_plan(stream_name(module)) for module in modules)
        consumers = tuple(plan for consumer, subjects in hears.items() for plan in consumer_plans(consumer, subjects))
        names = {stream.name for stream in streams}
        for plan in consumers:
            if plan.stream not in names:
                raise ValueError(f"{plan.name} hears {plan.subjects[0]}, and there is no stream {plan.stream}")
        return cls((*streams, DEAD_LETTERS_PLAN, ADVISORIES_PLAN), consumers)

    def with_consumers(self, more: Iterable[ConsumerPlan]) -> Topology:
        """Return the plan with *more* consumers."""
        return evolve(self, consumers=(*self.consumers, *more))


_EXHAUSTED = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES"
_DEAD = "dead"
DEAD_LETTERS_PLAN = StreamPlan(DEAD_LETTERS, (f"{_DEAD}.>",))
ADVISORIES_PLAN = StreamPlan(ADVISORIES, (f"{_EXHAUSTED}.>",))
"""Advisories are said once, to whoever is there: a stream keeps them for when we are."""


def stream_name(subject: str) -> str:
    """Return the name of the stream that keeps *subject*: its first part, in capitals, or that of the dead letters."""
    first = subject.partition(".")[0]
    return DEAD_LETTERS if first == _DEAD else first.upper()


def stream_plan(name: str) -> StreamPlan:
    """Return the plan of the stream *name*."""
    return {DEAD_LETTERS: DEAD_LETTERS_PLAN, ADVISORIES: ADVISORIES_PLAN}.get(name) or StreamPlan(name, (f"{name.lower()}.>",))


def consumer_plans(consumer: str, subjects: Sequence[str]) -> tuple[ConsumerPlan, ...]:
    """Return the durables that make up the group *consumer*: one for each stream that *subjects* are in."""
    by_stream: dict[str, list[str]] = {}
    for subject in subjects:
        by_stream.setdefault(stream_name(subject), []).append(subject)
    return tuple(
        ConsumerPlan(
            consumer,
            stream,
            tuple(sorted(heard)),
            EXPRESS_ACK_PENDING_MAX if all(map(is_express, heard)) else ACK_PENDING_MAX,
        )
        for stream, heard in sorted(by_stream.items())
    )


def advisory_subject(stream: str, consumer: str) -> str:
    """Return the subject under which the broker says that *consumer* has had its last try at a message."""
    return f"{_EXHAUSTED}.{stream}.{consumer}"


def advisory_consumer_plan(module: str, consumers: Iterable[ConsumerPlan]) -> ConsumerPlan:
    """Return the durable by which *module* learns which of its *consumers* have had their last try; see `bus.jetstream.recovery.exhausted_deliveries`."""
    subjects = sorted({advisory_subject(plan.stream, plan.name) for plan in consumers if module_of(plan.name) == module})
    return ConsumerPlan(f"patrol-{module}", ADVISORIES, tuple(subjects), ACK_PENDING_MAX)
