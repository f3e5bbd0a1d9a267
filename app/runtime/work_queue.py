"""Where events sit until the next pass, in two rows: the express lane goes first, and does not go alone."""

from __future__ import annotations

__all__ = ["FULL_BATCH_BELOW", "WorkQueue"]

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from attrs import define, field

T = TypeVar("T")

BULK_SHARE = 4
"""Of every batch, one part in so many is kept for the bulk row when it has anybody: a flood of express must not drown it."""

FULL_BATCH_BELOW = 16
"""So many are never parted."""


@define(eq=False)
class _Lane(Generic[T]):
    """Those of one lane, in their order; *seated* of them were fetched."""

    items: deque[T] = field(factory=deque)
    prefetched: int = 0


class WorkQueue(Generic[T]):
    """
    A queue with a fast lane.

    Each lane has *seats* for those who were fetched from the bus, as *is_fetched* tells. Whoever comes by himself stands:
    a crowd at the door keeps nobody from fetching, and neither lane keeps the other.
    """

    def __init__(self, prefetch_max: int, is_fetched: Callable[[T], bool] = lambda guest: True) -> None:
        self._prefetch_max = prefetch_max
        self._is_fetched = is_fetched
        self._express: _Lane[T] = _Lane()
        self._bulk: _Lane[T] = _Lane()
        self._has_items = asyncio.Event()
        self._has_space = asyncio.Event()
        self._in_progress = 0

    def __len__(self) -> int:
        return len(self._express.items) + len(self._bulk.items)

    def __iter__(self) -> Iterator[T]:
        return iter([*self._express.items, *self._bulk.items])

    def put(self, guest: T, is_express: bool = False) -> None:
        """Let *guest* in."""
        row = self._express if is_express else self._bulk
        row.items.append(guest)
        row.prefetched += self._is_fetched(guest)
        self._has_items.set()

    def requeue(self, guests: Iterable[T], is_express: Callable[[T], bool] = lambda guest: False) -> None:
        """Let *guests*, who were in the pass that just failed, sit down in front, each in the lane that he came in."""
        for guest in reversed(list(guests)):
            row = self._express if is_express(guest) else self._bulk
            row.items.appendleft(guest)
            row.prefetched += self._is_fetched(guest)
            self._has_items.set()

    def remove_if(self, is_leaving: Callable[[T], bool]) -> list[T]:
        """Let those out who do not want to wait; return them."""
        leaving = []
        for row in (self._express, self._bulk):
            everybody, row.items = row.items, deque()
            for guest in everybody:
                if is_leaving(guest):
                    leaving.append(guest)
                    row.prefetched -= self._is_fetched(guest)
                else:
                    row.items.append(guest)
        self._has_space.set()
        return leaving

    async def get_batch(self, most: int) -> list[T]:
        """
        Return up to *most* of those who sit, express first; wait until there is one.

        Of many, one pass takes no more than half: those of the last one are back soon, and come in while this one is
        committed. If all went together, all would wait for the disk together, and nobody would be there to be let in.
        """
        last, self._in_progress = self._in_progress, 0
        self._has_space.set()
        while not len(self):
            self._has_items.clear()
            await self._has_items.wait()
        if last:
            most = min(most, max(FULL_BATCH_BELOW, (len(self) + last + 1) // 2))
        bulk = len(self._bulk.items)
        batch = self._pop(self._express, most - min(bulk, most // BULK_SHARE))
        batch += self._pop(self._bulk, most - len(batch))
        self._in_progress = len(batch)
        self._has_space.set()
        return batch

    def _pop(self, row: _Lane[T], most: int) -> list[T]:
        """Take up to *most* out of *row*."""
        guests = row.items
        called = [guests.popleft() for _ in range(min(len(guests), most))]
        if row.prefetched:
            row.prefetched -= sum(map(self._is_fetched, called))
        return called

    async def wait_for_space(self, is_express: bool = False) -> int:
        """Return how many seats of a lane are free, at least one; wait until there is."""
        row = self._express if is_express else self._bulk
        while row.prefetched >= self._prefetch_max:
            self._has_space.clear()
            await self._has_space.wait()
        return self._prefetch_max - row.prefetched

    async def wait_until_empty(self) -> None:
        """Return once nobody sits and the last pass is over."""
        while len(self) or self._in_progress:
            self._has_space.clear()
            await self._has_space.wait()
