"""The work queue: lanes, prefetch limits and batch sizes."""

from __future__ import annotations

import asyncio

from app.runtime.work_queue import BULK_SHARE, FULL_BATCH_BELOW, WorkQueue


async def test_express_items_go_first() -> None:
    """They overtake bulk items that were queued earlier."""
    queue: WorkQueue[str] = WorkQueue(100)
    for n in range(3):
        queue.put(f"bulk-{n}")
    queue.put("fast", True)
    assert await queue.get_batch(2) == ["fast", "bulk-0"]
    assert await queue.get_batch(10) == ["bulk-1", "bulk-2"]


async def test_bulk_items_keep_their_share_of_every_batch() -> None:
    """Many express items do not starve them."""
    queue: WorkQueue[str] = WorkQueue(1000)
    for _ in range(100):
        queue.put("bulk")
        queue.put("fast", True)
    batch = await queue.get_batch(40)
    assert batch.count("bulk") == 40 // BULK_SHARE
    assert len(batch) == 40


async def test_a_batch_is_full_when_only_one_lane_has_items() -> None:
    """An empty lane leaves its share to the other."""
    for is_express in (True, False):
        queue: WorkQueue[int] = WorkQueue(100)
        for n in range(50):
            queue.put(n, is_express)
        assert await queue.get_batch(40) == list(range(40))


async def test_requeued_items_come_first_and_keep_their_order() -> None:
    """A failed batch does not cost an item its position."""
    queue: WorkQueue[int] = WorkQueue(100)
    for n in range(6):
        queue.put(n)
    batch = await queue.get_batch(4)
    queue.requeue(batch)
    assert list(queue) == [0, 1, 2, 3, 4, 5]
    assert await queue.get_batch(10) == [0, 1, 2, 3, 4, 5]


async def test_requeued_items_keep_their_lane() -> None:
    """After an outage express items still go before bulk items that arrived meanwhile."""
    queue: WorkQueue[int] = WorkQueue(100)
    for n in range(4):
        queue.put(n, n % 2 == 0)
    batch = await queue.get_batch(4)
    queue.put(4)
    queue.put(5, True)
    queue.requeue(batch, lambda item: item % 2 == 0)
    assert list(queue) == [0, 2, 5, 1, 3, 4]


async def test_get_batch_waits_for_the_first_item() -> None:
    """It does not wait for a second one."""
    queue: WorkQueue[int] = WorkQueue(100)
    taking = asyncio.create_task(queue.get_batch(10))
    await asyncio.sleep(0)
    assert not taking.done()
    queue.put(1)
    assert await asyncio.wait_for(taking, 30) == [1]


async def test_a_full_lane_offers_no_space() -> None:
    """A consumer waits until its lane may prefetch again."""
    queue: WorkQueue[int] = WorkQueue(3)
    assert await queue.wait_for_space() == 3
    for n in range(3):
        queue.put(n)
    waiting = asyncio.create_task(queue.wait_for_space())
    await asyncio.sleep(0)
    assert not waiting.done()
    await queue.get_batch(2)
    assert await asyncio.wait_for(waiting, 30) == 2


async def test_space_is_offered_as_soon_as_a_batch_is_taken() -> None:
    """A burst fills the lane of an idle module; while its batch is committed, the next messages are fetched."""
    queue: WorkQueue[int] = WorkQueue(3)

    async def consume() -> int:
        for n in range(3):
            queue.put(n)
        return await queue.wait_for_space()

    taking = asyncio.create_task(queue.get_batch(2))
    await asyncio.sleep(0)
    consuming = asyncio.create_task(consume())
    assert await asyncio.wait_for(taking, 30) == [0, 1]
    assert await asyncio.wait_for(consuming, 5) == 2


async def test_submitted_items_use_no_prefetch_space() -> None:
    """However many submissions are queued, the consumers go on fetching."""
    queue: WorkQueue[str] = WorkQueue(3, lambda item: item == "fetched")
    for _ in range(10):
        queue.put("standing")
    queue.put("fetched")
    assert await queue.wait_for_space() == 2
    assert queue.remove_if(lambda item: item == "standing") == ["standing"] * 10
    assert await queue.wait_for_space() == 2
    batch = await queue.get_batch(10)
    assert await queue.wait_for_space() == 3
    queue.requeue(batch)
    assert await queue.wait_for_space() == 2


async def test_each_lane_has_its_own_prefetch_space() -> None:
    """A full lane does not keep the other from fetching."""
    queue: WorkQueue[int] = WorkQueue(3)
    for n in range(3):
        queue.put(n)
    assert await queue.wait_for_space(is_express=True) == 3
    queue.put(3, True)
    assert await queue.wait_for_space(is_express=True) == 2


async def test_the_queue_is_empty_once_the_last_batch_is_finished() -> None:
    """A batch counts as in progress until the next one is requested."""
    queue: WorkQueue[int] = WorkQueue(3)
    queue.put(1)
    empty = asyncio.create_task(queue.wait_until_empty())
    await queue.get_batch(5)
    await asyncio.sleep(0)
    assert not empty.done()
    taking = asyncio.create_task(queue.get_batch(5))
    await asyncio.wait_for(empty, 30)
    taking.cancel()


async def test_many_clients_are_split_into_two_alternating_batches() -> None:
    """While one half is committed, the other is queued; the halves stay even."""
    queue: WorkQueue[int] = WorkQueue(100, _is_from_bus)
    queue.put(0)
    came = await queue.get_batch(100)
    for n in range(1, 64):
        queue.put(n)
    sizes = []
    for _ in range(4):
        back, came = came, await queue.get_batch(100)
        for item in back:
            queue.put(item)
        sizes.append(len(came))
    assert sizes == [32, 32, 32, 32]


async def test_small_and_first_batches_are_not_split() -> None:
    """Items that have no other half to alternate with do not wait for a second batch."""
    queue: WorkQueue[int] = WorkQueue(100, _is_from_bus)
    for n in range(90):
        queue.put(n)
    assert len(await queue.get_batch(100)) == 90
    queue = WorkQueue(100, _is_from_bus)
    queue.put(0)
    await queue.get_batch(100)
    for n in range(FULL_BATCH_BELOW):
        queue.put(n)
    assert len(await queue.get_batch(100)) == FULL_BATCH_BELOW


async def test_items_from_the_bus_are_not_halved() -> None:
    """Nothing waits for their outcome; submitted items beside them are halved as ever."""
    queue: WorkQueue[int] = WorkQueue(100, lambda item: item < 0)
    queue.put(1)
    await queue.get_batch(100)
    for n in range(40):
        queue.put(-1)
        queue.put(n)
    assert len(await queue.get_batch(100)) == 40 + 21
    assert len(await queue.get_batch(100)) == 19
    for _ in range(60):
        queue.put(-1)
    assert len(await queue.get_batch(100)) == 60


def _is_from_bus(item: int) -> bool:
    return False
