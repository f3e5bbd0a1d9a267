"""Who is there to hear what: asked of the bus itself, not of our own plans."""

from __future__ import annotations

__all__ = ["ConsumerDirectory", "JetStreamConsumerDirectory", "MemoryConsumerDirectory", "RegisteredConsumer", "subject_matches"]

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from attrs import frozen
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo
from nats.js.errors import NotFoundError

from bus.memory.bus import MemoryBus

PAGE_SIZE = 256
"""Consumers that the server tells at once."""


@frozen
class RegisteredConsumer:
    """A consumer, the subjects that it hears (wildcards allowed), and how many messages it has yet to settle."""

    consumer: str
    subjects: tuple[str, ...]
    pending: int


class ConsumerDirectory(Protocol):
    """Where one learns who listens."""

    async def consumers(self) -> Sequence[RegisteredConsumer]:
        """
        Return everybody who listens now, our own consumers and others' alike.

        Raises:
            Exception: The bus does not answer; nobody knows.
        """


def subject_matches(pattern: str, subject: str) -> bool:
    """Tell whether *pattern*, which may hold ``*`` for one part and end in ``>`` for the rest, covers *subject*."""
    if pattern == subject:
        return True
    wanted, parts = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, parts = wanted[:-1], parts[: len(wanted) - 1] if len(parts) >= len(wanted) else []
    return len(wanted) == len(parts) and all(want in ("*", part) for want, part in zip(wanted, parts, strict=True))


class MemoryConsumerDirectory:
    """The groups of a bus in memory: nobody else can listen there."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus

    async def consumers(self) -> Sequence[RegisteredConsumer]:
        """Return the groups."""
        return [RegisteredConsumer(name, subjects, pending) for name, subjects, pending in self._bus.groups()]


class JetStreamConsumerDirectory:
    """
    The consumers on the *streams* of a JetStream server, durable or not.

    *js* returns the connection of the moment. Who subscribes to a subject without JetStream is known to nobody.
    """

    def __init__(self, js: Callable[[], JetStreamContext], streams: Iterable[str]) -> None:
        self._js = js
        self._streams = tuple(dict.fromkeys(streams))

    async def consumers(self) -> Sequence[RegisteredConsumer]:
        """Return the consumers; one on two streams comes twice, with what it hears of each."""
        return [_listener(info) for stream in self._streams for info in await self._consumers(stream)]

    async def _consumers(self, stream: str) -> list[ConsumerInfo]:
        found: list[ConsumerInfo] = []
        try:
            while len(page := await self._js().consumers_info(stream, offset=len(found))) == PAGE_SIZE:
                found += page
        except NotFoundError:
            return []  # nothing has been said there yet, and nobody can be listening
        return found + page


def _listener(info: ConsumerInfo) -> RegisteredConsumer:
    config = info.config
    filters = config.filter_subjects or ([config.filter_subject] if config.filter_subject else [">"])
    return RegisteredConsumer(config.durable_name or info.name, tuple(filters), (info.num_pending or 0) + (info.num_ack_pending or 0))
