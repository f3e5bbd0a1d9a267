"""What the contract suite needs to know of an adapter, and what it does with one."""

from __future__ import annotations

__all__ = ["Features", "Harness", "InMemoryDeadLetters"]

from collections.abc import Awaitable
from typing import Protocol, TypeVar

from attrs import frozen

from bus.port import Bus, DeadLetter

T = TypeVar("T")


@frozen(kw_only=True)
class Features:
    """Where adapters may differ. Where a feature is off, the suite tests what is promised instead."""

    publish_waits_for_groups: bool
    """A publish ends when every group has settled the message; else as soon as the bus has stored it."""
    survives_restart: bool
    """A message that is unsettled when the bus closes is delivered by the next one; else its publish ends with BusClosed."""
    is_ordered: bool
    """A group with one member receives messages in the order of publishing, unless it naks some; else in any order."""
    delivers_earlier_messages: bool
    """A new group also receives what was published before it was created; else only what is published later."""


class Harness(Protocol):
    """One adapter, set up for one test: an unused bus, and a way to let time pass."""

    features: Features
    ack_wait_seconds: float
    """The unit of time of the suite: short on a real server, anything on a virtual clock."""
    patience_seconds: float
    """How long a test waits for a message that should arrive at once."""
    dedup_seconds: float
    tolerance_seconds: float
    """How early the bus may be with what it does at a certain time, by the test's clock."""

    @property
    def bus(self) -> Bus:
        """The bus under test; after `restart` the new one."""

    @property
    def lag_seconds(self) -> float:
        """How long this machine has delayed everything so far in this test, beyond what is usual."""

    @property
    def late_seconds(self) -> float:
        """How late the bus may be with what it does at a certain time."""

    def monotonic(self) -> float:
        """Return the time of the bus's clock, in seconds."""

    async def pass_time(self, seconds: float) -> None:
        """Let *seconds* pass, and everything happen that is due in them."""

    async def rest(self) -> None:
        """Let what is under way finish, as far as it need not wait for a later time."""

    async def run(self, awaitable: Awaitable[T]) -> T:
        """
        Return the result of *awaitable*, letting as little time pass as it takes.

        Raises:
            TimeoutError: It takes unreasonably long.
        """

    async def dead_letters(self, count: int) -> list[DeadLetter]:
        """Return all dead letters that are stored by now; wait a reasonable time until there are *count*."""

    def fail_dead_letters(self, times: int) -> None:
        """Let the next *times* attempts to store a dead letter fail."""

    async def restart(self) -> Bus:
        """Close the bus and open another one on what the first has stored; return it."""


class InMemoryDeadLetters:
    """A store of dead letters that can be made to fail."""

    def __init__(self) -> None:
        self.kept: dict[str, DeadLetter] = {}
        self.attempts = 0
        self.written = 0
        self.failures_left = 0

    async def add(self, dead_letter: DeadLetter) -> None:
        self.attempts += 1
        if self.failures_left:
            self.failures_left -= 1
            raise OSError("the disk is full")
        self.written += 1
        self.kept.setdefault(dead_letter.id, dead_letter)
