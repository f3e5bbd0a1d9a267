"""Where events sit until the next pass, in two rows: the express lane goes first, and does not go alone."""

from __future__ import annotations

__all__ = ["FEW", "WaitingRoom"]

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from attrs import define, field

T = TypeVar("T")

BULK_SHARE = 4
"""Of every batch, one part in so many is kept for the bulk row when it has anybody: a flood of express must not drown it."""

FEW = 16
"""So many are never parted."""


@define(eq=False)
class _Row(Generic[T]):
    """Those of one lane, in their order; *seated* of them were fetched."""

    guests: deque[T] = field(factory=deque)
    seated: int = 0


class WaitingRoom(Generic[T]):
    """
    A queue with a fast lane.

    Each lane has *seats* for those who were fetched from the bus, as *is_fetched* tells. Whoever comes by himself stands:
    a crowd at the door keeps nobody from fetching, and neither lane keeps the other.
    """

    def __init__(self, seats: int, is_fetched: Callable[[T], bool] = lambda guest: True) -> None:
        self._seats = seats
        self._is_fetched = is_fetched
        self._express: _Row[T] = _Row()
        self._bulk: _Row[T] = _Row()
        self._came = asyncio.Event()
        self._went = asyncio.Event()
        self._in_pass = 0

    def __len__(self) -> int:
        return len(self._express.guests) + len(self._bulk.guests)

    def __iter__(self) -> Iterator[T]:
        return iter([*self._express.guests, *self._bulk.guests])

    def sit(self, guest: T, is_express: bool = False) -> None:
        """Let *guest* in."""
        row = self._express if is_express else self._bulk
        row.guests.append(guest)
        row.seated += self._is_fetched(guest)
        self._came.set()

    def sit_again(self, guests: Iterable[T], is_express: Callable[[T], bool] = lambda guest: False) -> None:
        """Let *guests*, who were in the pass that just failed, sit down in front, each in the lane that he came in."""
        for guest in reversed(list(guests)):
            row = self._express if is_express(guest) else self._bulk
            row.guests.appendleft(guest)
            row.seated += self._is_fetched(guest)
            self._came.set()

    def leave(self, is_leaving: Callable[[T], bool]) -> list[T]:
        """Let those out who do not want to wait; return them."""
        leaving = []
        for row in (self._express, self._bulk):
            everybody, row.guests = row.guests, deque()
            for guest in everybody:
                if is_leaving(guest):
                    leaving.append(guest)
                    row.seated -= self._is_fetched(guest)
                else:
                    row.guests.append(guest)
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
        while not len(self):
            self._came.clear()
            await self._came.wait()
        if last:
            most = min(most, max(FEW, (len(self) + last + 1) // 2))
        bulk = len(self._bulk.guests)
        batch = self._called(self._express, most - min(bulk, most // BULK_SHARE))
        batch += self._called(self._bulk, most - len(batch))
        self._in_pass = len(batch)
        self._went.set()
        return batch

    def _called(self, row: _Row[T], most: int) -> list[T]:
        """Take up to *most* out of *row*."""
        guests = row.guests
        called = [guests.popleft() for _ in range(min(len(guests), most))]
        if row.seated:
            row.seated -= sum(map(self._is_fetched, called))
        return called

    async def wait_for_space(self, is_express: bool = False) -> int:
        """Return how many seats of a lane are free, at least one; wait until there is."""
        row = self._express if is_express else self._bulk
        while row.seated >= self._seats:
            self._went.clear()
            await self._went.wait()
        return self._seats - row.seated

    async def wait_until_empty(self) -> None:
        """Return once nobody sits and the last pass is over."""
        while len(self) or self._in_pass:
            self._went.clear()
            await self._went.wait()
