"""
A message in memory, as its publishers and as each consumer group see it.

A *publication* is what the publishers wait for; by its id a duplicate is recognised. Each group has its own *group
message*, which is ready, delivered, delayed or settled.
"""

from __future__ import annotations

__all__ = ["DELAYED", "DELIVERED", "READY", "SETTLED", "GroupMessage", "MessageGroup", "Publication"]

import asyncio
from typing import Protocol

from attrs import define

from bus.port import Message

READY, DELIVERED, DELAYED, SETTLED = range(4)
"""States of a group message. SETTLED includes that it is dead-lettered, even before the dead letter is stored."""


@define(eq=False)
class Publication:
    """A published message: how many groups have yet to settle it, and the futures that wait for that."""

    id: str
    at: float
    unsettled: int
    future: asyncio.Future[None] | None
    duplicate_futures: list[asyncio.Future[None]] | None = None


class MessageGroup(Protocol):
    """The consumer group of a group message."""

    name: str

    def requeue(self, message: GroupMessage, delay_seconds: float = 0.0) -> None:
        """Make *message* ready again, after *delay_seconds*."""

    def release(self, message: GroupMessage) -> None:
        """End the current delivery of *message*, if there is one."""


@define(eq=False)
class GroupMessage:
    """A message as one group sees it. *first_at* is the monotonic time of its first delivery."""

    message: Message
    publication: Publication
    group: MessageGroup
    state: int = READY
    tries: int = 0
    first_at: float = 0.0
