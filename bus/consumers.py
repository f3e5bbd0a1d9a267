"""The streams and consumers that the bus itself knows, as the operator sees them; each adapter has its own directory."""

from __future__ import annotations

__all__ = ["UNDERSTOOD", "ConsumerDirectory", "RegisteredConsumer", "RegisteredStream", "subject_matches"]

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen

UNDERSTOOD = "understood-subjects"
"""The member of a durable's metadata that lists `RegisteredConsumer.understood`, separated by spaces."""


@frozen
class RegisteredConsumer:
    """A consumer, the subjects it subscribes to (wildcards allowed), and how many messages it has yet to settle."""

    consumer: str
    subjects: tuple[str, ...]
    pending: int
    in_progress: int = 0
    """Those of *pending* that are delivered and not settled yet."""
    redelivered: int = 0
    """Those of *in_progress* that were delivered more than once."""
    stream: str = ""
    """Empty where the bus has no streams."""
    understood: frozenset[str] = frozenset()
    """Subjects that it is known to read, although it may subscribe to them by a wildcard."""


@frozen
class RegisteredStream:
    """A stream: how many messages it holds, their bytes, the sequence of the newest one, and its number of replicas."""

    name: str
    messages: int
    bytes: int
    last_sequence: int
    replicas: int


class ConsumerDirectory(Protocol):
    """Lists the consumers and streams that exist on the bus."""

    async def consumers(self) -> Sequence[RegisteredConsumer]:
        """
        Return every consumer that exists now, those of this service and those of others alike.

        Raises:
            Exception: The bus does not answer, so nothing is known.
        """

    async def streams(self) -> Sequence[RegisteredStream]:
        """
        Return every stream of this service that exists now; none on a bus without streams.

        Raises:
            Exception: The bus does not answer, so nothing is known.
        """


def subject_matches(pattern: str, subject: str) -> bool:
    """Return whether *pattern*, which may hold ``*`` for one token and end in ``>`` for the rest, covers *subject*."""
    if pattern == subject:
        return True
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, tokens = wanted[:-1], tokens[: len(wanted) - 1] if len(tokens) >= len(wanted) else []
    return len(wanted) == len(tokens) and all(want in ("*", token) for want, token in zip(wanted, tokens, strict=True))
