"""Where events sit until the next pass, in two rows: the express lane goes first, and does not go alone."""

from __future__ import annotations

__all__ = ["FEW", "WaitingRoom"]

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

BULK_SHARE = 4
"""Of every batch, one part in so many is kept for the bulk row when it has anybody: a flood of express must not drown it."""

FEW = 16
"""So many are never parted."""


class WaitingRoom(Generic[T]):
    """
    A queue with a fast lane.

    *seats* bounds what is fetched from the bus; whoever comes by himself may stand.
    """

    def __init__(self, seats: int) -> None:
        self._seats = seats
        self._express: deque[T] = deque()
        self._bulk: deque[T] = deque()
        self._came = asyncio.Event()
        self._went = asyncio.Event()
        self._in_pass = 0

    def __len__(self) -> int:
        return len(self._express) + len(self._bulk)

    def __iter__(self) -> Iterator[T]:
        return iter([*self._express, *self._bulk])

    def sit(self, guest: T, is_express: bool = False) -> None:
        """Let *guest* in."""
        (self._express if is_express else self._bulk).append(guest)
        self._came.set()

    def sit_again(self, guests: Iterable[T]) -> None:
        """Let *guests*, who were in the pass that just failed, sit down in front."""
        self._bulk.extendleft(reversed(list(guests)))
        if self._bulk:
            self._came.set()

    def leave(self, is_leaving: Callable[[T], bool]) -> list[T]:
        """Let those out who do not want to wait; return them."""
        leaving = [guest for guest in self if is_leaving(guest)]
        self._express = deque(guest for guest in self._express if not is_leaving(guest))
        self._bulk = deque(guest for guest in self._bulk if not is_leaving(guest))
        self._went.set()
        return leaving

    async def take(self, most: int) -> list[T]:
        """
        Return up to *most* of those who sit, express first; wait until there is one.

        Of many, one pass takes no more than half: those of the last one are back soon, and come in while this one is
        committed. If all went together, all would wait for the disk together, and nobody would be there to be let in.
        """
        last, self._in_pass = self._in_pass, 0
        self._went.set()
        while not (self._express or self._bulk):
            self._came.clear()
            await self._came.wait()
        if last:
            most = min(most, max(FEW, (len(self) + last + 1) // 2))
        express, bulk = self._express, self._bulk
        fast = min(len(express), most - min(len(bulk), most // BULK_SHARE))
        batch = [express.popleft() for _ in range(fast)]
        batch += [bulk.popleft() for _ in range(min(len(bulk), most - fast))]
        self._in_pass = len(batch)
        self._went.set()
        return batch

    async def wait_for_space(self) -> int:
        """Return how many seats are free, at least one; wait until there is."""
        while len(self) >= self._seats:
            self._went.clear()
            await self._went.wait()
        return self._seats - len(self)

    async def wait_until_empty(self) -> None:
        """Return once nobody sits and the last pass is over."""
        while len(self) or self._in_pass:
            self._went.clear()
            await self._went.wait()
