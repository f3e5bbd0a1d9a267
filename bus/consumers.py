"""The consumers that the bus itself knows, as the operator sees them; each adapter has its own directory."""

from __future__ import annotations

__all__ = ["ConsumerDirectory", "RegisteredConsumer", "subject_matches"]

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen


@frozen
class RegisteredConsumer:
    """A consumer, the subjects it subscribes to (wildcards allowed), and how many messages it has yet to settle."""

    consumer: str
    subjects: tuple[str, ...]
    pending: int


class ConsumerDirectory(Protocol):
    """Lists the consumers that exist on the bus."""

    async def consumers(self) -> Sequence[RegisteredConsumer]:
        """
        Return every consumer that exists now, those of this service and those of others alike.

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
