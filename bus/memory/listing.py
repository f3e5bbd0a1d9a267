"""The consumer groups of a memory bus, listed."""

from __future__ import annotations

__all__ = ["MemoryConsumerDirectory"]

from collections.abc import Sequence

from bus.consumers import RegisteredConsumer, RegisteredStream
from bus.memory.bus import MemoryBus


class MemoryConsumerDirectory:
    """Lists the groups of a bus in memory. They are all there is: no other process can subscribe to it."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus

    async def consumers(self) -> Sequence[RegisteredConsumer]:
        """Return the groups."""
        return [RegisteredConsumer(name, subjects, pending) for name, subjects, pending in self._bus.groups()]

    async def streams(self) -> Sequence[RegisteredStream]:
        """Return none: messages wait in the groups."""
        return ()
