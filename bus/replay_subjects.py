"""
The subjects that replayed dead letters travel under: ``<module>.replay.<consumer>.<original subject>``.

The module is the consumer's own, so a replay stays in that module's stream, and only the consumer that gave up hears it:
nobody else is told again what he has long handled. The original subject comes last, lane included, so that a replay of an
express message is express traffic, too.
"""

from __future__ import annotations

__all__ = ["UNROUTABLE", "is_unroutable", "module_of", "original_subject", "replay_subject"]

UNROUTABLE = "-strays"
"""What the consumer of the messages that nobody knows has behind its module's name."""

_MARK = ".replay."


def module_of(consumer: str) -> str:
    """Return the module that *consumer* belongs to: its name up to the first dash."""
    return consumer.partition("-")[0]


def is_unroutable(consumer: str) -> bool:
    """Tell whether what *consumer* gave up on was nobody's."""
    return consumer.endswith(UNROUTABLE)


def replay_subject(consumer: str, subject: str) -> str:
    """Return the subject under which *consumer*, and nobody else, hears again what went under *subject*."""
    return f"{module_of(consumer)}{_MARK}{consumer}.{subject}"


def original_subject(subject: str) -> str:
    """Return what was first said under *subject*: the same, unless it is the subject of a replay."""
    if _MARK not in subject:
        return subject
    module, _, rest = subject.partition(_MARK)
    consumer, _, said = rest.partition(".")
    return said if said and module_of(consumer) == module else subject
