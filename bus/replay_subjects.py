"""
Subjects of replayed dead letters: ``<module>.replay.<consumer>.<original subject>``.

The module is the consumer's own, so a replay is stored in that module's stream. Only the consumer that dead-lettered
the message receives it; other consumers, which have processed the message long ago, do not. The original subject comes
last, lane included, so the replay of an express message is in the express lane, too.
"""

from __future__ import annotations

__all__ = ["UNROUTABLE", "is_unroutable", "module_of", "original_subject", "replay_subject"]

UNROUTABLE = "-strays"
"""Suffix, after the module's name, of the consumer that dead-letters the messages without a subscriber."""

_INFIX = ".replay."


def module_of(consumer: str) -> str:
    """Return the module of *consumer*: the part of the name before the first dash."""
    return consumer.partition("-")[0]


def is_unroutable(consumer: str) -> bool:
    """Return whether the dead letters of *consumer* are messages without a subscriber."""
    return consumer.endswith(UNROUTABLE)


def replay_subject(consumer: str, subject: str) -> str:
    """Return the subject under which *consumer* alone receives the replay of a message on *subject*."""
    return f"{module_of(consumer)}{_INFIX}{consumer}.{subject}"


def original_subject(subject: str) -> str:
    """Return the original subject of a replay, or *subject* itself if it is not the subject of a replay."""
    if _INFIX not in subject:
        return subject
    module, _, rest = subject.partition(_INFIX)
    consumer, _, original = rest.partition(".")
    return original if original and module_of(consumer) == module else subject
