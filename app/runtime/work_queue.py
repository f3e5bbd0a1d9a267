"""The queue of items that wait for the next batch: two lanes, express first, a prefetch limit for each, and a limit for all that waits."""

from __future__ import annotations

__all__ = ["FULL_BATCH_BELOW", "LoadLimit", "WorkQueue"]

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from attrs import define, field
from loguru import logger

from app.messaging.outbox_relay import OutboxRelay
from app.runtime.service import Overloaded

T = TypeVar("T")

BULK_SHARE = 4
"""One part in this many of every batch is kept for the bulk lane, so that many express items do not starve it."""

FULL_BATCH_BELOW = 16
"""A batch of up to this many items is never halved."""


@define(eq=False)
class _Lane(Generic[T]):
    """The items of one lane in their order; *prefetched* of them came from the bus."""

    items: deque[T] = field(factory=deque)
    prefetched: int = 0


class WorkQueue(Generic[T]):
    """
    A queue with an express lane.

    Up to *prefetch_max* items of each lane may come from the bus; *is_prefetched* returns which ones do. Submitted items do
    not count: many HTTP requests do not stop a consumer from fetching, and neither lane blocks the other.
    """

    def __init__(self, prefetch_max: int, is_prefetched: Callable[[T], bool] = lambda item: True) -> None:
        self._prefetch_max = prefetch_max
        self._is_prefetched = is_prefetched
        self._express: _Lane[T] = _Lane()
        self._bulk: _Lane[T] = _Lane()
        self._has_items = asyncio.Event()
        self._has_space = asyncio.Event()
        self._in_progress = 0
        self._submitted = 0
        """How many items of the last batch were submitted, and did not come from the bus."""

    def __len__(self) -> int:
        return len(self._express.items) + len(self._bulk.items)

    def __iter__(self) -> Iterator[T]:
        return iter([*self._express.items, *self._bulk.items])

    def put(self, item: T, is_express: bool = False) -> None:
        """Append *item* to its lane."""
        lane = self._express if is_express else self._bulk
        lane.items.append(item)
        lane.prefetched += self._is_prefetched(item)
        self._has_items.set()

    def requeue(self, items: Iterable[T], is_express: Callable[[T], bool] = lambda item: False) -> None:
        """Put the *items* of a failed batch back at the front of their lanes, in their order."""
        for item in reversed(list(items)):
            lane = self._express if is_express(item) else self._bulk
            lane.items.appendleft(item)
            lane.prefetched += self._is_prefetched(item)
            self._has_items.set()

    def remove_if(self, is_to_go: Callable[[T], bool]) -> list[T]:
        """Remove and return the items for which *is_to_go* is true."""
        removed = []
        for lane in (self._express, self._bulk):
            items, lane.items = lane.items, deque()
            for item in items:
                if is_to_go(item):
                    removed.append(item)
                    lane.prefetched -= self._is_prefetched(item)
                else:
                    lane.items.append(item)
        self._has_space.set()
        return removed

    async def get_batch(self, count_max: int) -> list[T]:
        """
        Wait for an item; return up to *count_max*, express first.

        A large batch takes no more than half of the submitted items that are queued or were in the last batch. While it
        is committed, the clients of the last batch send their next requests; one batch with all items would make all
        clients wait for the disk at the same time, and leave the queue empty meanwhile. Items from the bus are all
        taken: nothing waits for their outcome before it sends the next ones.
        """
        last, self._submitted, self._in_progress = self._submitted, 0, 0
        self._has_space.set()
        while not len(self):
            self._has_items.clear()
            await self._has_items.wait()
        prefetched = self._express.prefetched + self._bulk.prefetched
        if last:
            submitted = len(self) - prefetched
            count_max = min(count_max, max(FULL_BATCH_BELOW, prefetched + (submitted + last + 1) // 2))
        bulk = len(self._bulk.items)
        batch = self._pop(self._express, count_max - min(bulk, count_max // BULK_SHARE))
        batch += self._pop(self._bulk, count_max - len(batch))
        self._in_progress = len(batch)
        self._submitted = len(batch) - prefetched + self._express.prefetched + self._bulk.prefetched
        self._has_space.set()
        return batch

    def _pop(self, lane: _Lane[T], count_max: int) -> list[T]:
        """Remove and return the first items of *lane*, up to *count_max*."""
        items = lane.items
        popped = [items.popleft() for _ in range(min(len(items), count_max))]
        if lane.prefetched:
            lane.prefetched -= sum(map(self._is_prefetched, popped))
        return popped

    async def wait_for_space(self, is_express: bool = False) -> int:
        """Wait until a lane may prefetch; return how many items it may, at least one."""
        lane = self._express if is_express else self._bulk
        while lane.prefetched >= self._prefetch_max:
            self._has_space.clear()
            await self._has_space.wait()
        return self._prefetch_max - lane.prefetched

    async def wait_until_empty(self) -> None:
        """Return once no item is queued and the last batch is finished."""
        while len(self) or self._in_progress:
            self._has_space.clear()
            await self._has_space.wait()


SHEDDING_ENDS_BELOW = 0.9
"""The share of the backlog cap below which load shedding is logged as over; the gap keeps the log from flapping."""


class LoadLimit:
    """The limit of what may wait: the events that *relays* have to publish, and what is queued; *most* is the cap."""

    def __init__(self, relays: Iterable[OutboxRelay], most: int) -> None:
        self._relays = tuple(relays)
        self._most = most
        self._is_shedding = False

    def check(self, queued: int) -> None:
        """
        Reject new work while the backlog and the *queued* items are together over the cap.

        Raises:
            Overloaded: They are.
        """
        waiting, most = queued + sum([relay.pending_events for relay in self._relays]), self._most
        if waiting > most:
            if not self._is_shedding:
                self._is_shedding = True
                logger.warning("the backlog is over its cap; new orders are rejected", waiting=waiting, most=most)
            raise Overloaded("The backlog is over its cap; nothing was stored.", 2)
        if self._is_shedding and waiting <= most * SHEDDING_ENDS_BELOW:
            self._is_shedding = False
            logger.info("new orders are accepted again", waiting=waiting)
