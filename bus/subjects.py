"""
Subjects of messages.

An event is published under ``<module>.<event>.v<N>``; the version is part of the subject. A message in the express lane
has the same subject with a trailing ``.express``.

The replay of a dead letter is published under ``<module>.replay.<consumer>.<original subject>``. The module is the
consumer's own, so the replay is stored in that module's stream. Only the consumer that dead-lettered the message receives
it; other consumers, which have processed the message long ago, do not. The original subject comes last, lane included, so
the replay of an express message is in the express lane, too.
"""

from __future__ import annotations

__all__ = [
    "EXPRESS",
    "OUTBOX",
    "UNROUTABLE",
    "Event",
    "event",
    "is_express",
    "is_unpublished",
    "is_unroutable",
    "module_of",
    "original_subject",
    "replay_subject",
    "subject_of",
    "without_lane",
]

from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import attrs

Event = Any
"""An instance of a class made by `event`."""

T = TypeVar("T")

EXPRESS = ".express"
"""Suffix of the subjects in the express lane."""

UNROUTABLE = "-strays"
"""Suffix, after the module's name, of the consumer that dead-letters the messages without a subscriber."""

OUTBOX = "-outbox"
"""Suffix, after the module's name, of the consumer in the dead letters about messages that the bus never accepts."""

_REPLAY = ".replay."


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(attrs.field,))
def event(subject: str) -> Callable[[type[T]], type[T]]:
    """
    Make a class an event: keyword-only, published under *subject*, which the contract registry checks.

    An event never changes. The type checker enforces that, and not the class, which would take twice as long to make.
    """

    def decorate(cls: type[T]) -> type[T]:
        cls = attrs.define(cls, kw_only=True, unsafe_hash=True)
        cls.__subject__ = subject  # type: ignore[attr-defined]
        return cls

    return decorate


def subject_of(event: Event) -> str:
    """Return the subject of *event*, which is an event or a class of events, without a lane."""
    subject: str = event.__subject__
    return subject


def is_express(subject: str) -> bool:
    """Return whether *subject* is in the express lane."""
    return subject.endswith(EXPRESS)


def without_lane(subject: str) -> str:
    """Return *subject* without its lane, as the registry lists it."""
    return subject.removesuffix(EXPRESS)


def module_of(consumer: str) -> str:
    """Return the module of *consumer*: the part of the name before the first dash."""
    return consumer.partition("-")[0]


def is_unroutable(consumer: str) -> bool:
    """Return whether the dead letters of *consumer* are messages without a subscriber."""
    return consumer.endswith(UNROUTABLE)


def is_unpublished(consumer: str) -> bool:
    """Return whether the dead letters of *consumer* are messages that the bus has never accepted."""
    return consumer.endswith(OUTBOX)


def replay_subject(consumer: str, subject: str) -> str:
    """Return the subject under which *consumer* alone receives the replay of a message on *subject*."""
    return f"{module_of(consumer)}{_REPLAY}{consumer}.{subject}"


def original_subject(subject: str) -> str:
    """Return the original subject of a replay, or *subject* itself if it is not the subject of a replay."""
    if _REPLAY not in subject:
        return subject
    module, _, rest = subject.partition(_REPLAY)
    consumer, _, original = rest.partition(".")
    return original if original and module_of(consumer) == module else subject
