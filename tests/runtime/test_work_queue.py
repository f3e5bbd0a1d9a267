"""Where events sit until the next pass."""

from __future__ import annotations

import asyncio

from app.runtime.work_queue import BULK_SHARE, FULL_BATCH_BELOW, WorkQueue


async def test_express_goes_first() -> None:
    """Whoever came before them."""
    room: WorkQueue[str] = WorkQueue(100)
    for n in range(3):
        room.put(f"bulk-{n}")
    room.put("fast", True)
    assert await room.get_batch(2) == ["fast", "bulk-0"]
    assert await room.get_batch(10) == ["bulk-1", "bulk-2"]


async def test_bulk_keeps_its_share_of_every_batch() -> None:
    """A flood of express cannot drown it."""
    room: WorkQueue[str] = WorkQueue(1000)
    for _ in range(100):
        room.put("bulk")
        room.put("fast", True)
    batch = await room.get_batch(40)
    assert batch.count("bulk") == 40 // BULK_SHARE
    assert len(batch) == 40


async def test_a_batch_is_full_whoever_is_there() -> None:
    """A row without guests leaves its seats to the other."""
    for is_express in (True, False):
        room: WorkQueue[int] = WorkQueue(100)
        for n in range(50):
            room.put(n, is_express)
        assert await room.get_batch(40) == list(range(40))


async def test_those_who_sit_again_come_first_and_in_their_order() -> None:
    """A pass that failed costs nobody his place."""
    room: WorkQueue[int] = WorkQueue(100)
    for n in range(6):
        room.put(n)
    batch = await room.get_batch(4)
    room.requeue(batch)
    assert list(room) == [0, 1, 2, 3, 4, 5]
    assert await room.get_batch(10) == [0, 1, 2, 3, 4, 5]


async def test_those_who_sit_again_keep_their_lane() -> None:
    """After an outage, too, express goes before the bulk that came meanwhile."""
    room: WorkQueue[int] = WorkQueue(100)
    for n in range(4):
        room.put(n, n % 2 == 0)
    batch = await room.get_batch(4)
    room.put(4)
    room.put(5, True)
    room.requeue(batch, lambda guest: guest % 2 == 0)
    assert list(room) == [0, 2, 5, 1, 3, 4]


async def test_taking_waits_for_the_first_guest() -> None:
    """And for no second."""
    room: WorkQueue[int] = WorkQueue(100)
    taking = asyncio.create_task(room.get_batch(10))
    await asyncio.sleep(0)
    assert not taking.done()
    room.put(1)
    assert await asyncio.wait_for(taking, 20) == [1]


async def test_space_is_promised_only_where_there_is_some() -> None:
    """Who fetches from the bus waits until a seat is free."""
    room: WorkQueue[int] = WorkQueue(3)
    assert await room.wait_for_space() == 3
    for n in range(3):
        room.put(n)
    waiting = asyncio.create_task(room.wait_for_space())
    await asyncio.sleep(0)
    assert not waiting.done()
    await room.get_batch(2)
    assert await asyncio.wait_for(waiting, 20) == 2


async def test_who_comes_by_himself_takes_no_seat() -> None:
    """However many stand at the door, the bus is heard."""
    room: WorkQueue[str] = WorkQueue(3, lambda guest: guest == "fetched")
    for _ in range(10):
        room.put("standing")
    room.put("fetched")
    assert await room.wait_for_space() == 2
    assert room.remove_if(lambda guest: guest == "standing") == ["standing"] * 10
    assert await room.wait_for_space() == 2
    batch = await room.get_batch(10)
    assert await room.wait_for_space() == 3
    room.requeue(batch)
    assert await room.wait_for_space() == 2


async def test_each_lane_has_seats_of_its_own() -> None:
    """A lane that is full does not keep the other from fetching."""
    room: WorkQueue[int] = WorkQueue(3)
    for n in range(3):
        room.put(n)
    assert await room.wait_for_space(is_express=True) == 3
    room.put(3, True)
    assert await room.wait_for_space(is_express=True) == 2


async def test_the_room_is_empty_once_the_last_pass_is_over() -> None:
    """Those who were called in are still there until the next are called."""
    room: WorkQueue[int] = WorkQueue(3)
    room.put(1)
    empty = asyncio.create_task(room.wait_until_empty())
    await room.get_batch(5)
    await asyncio.sleep(0)
    assert not empty.done()
    taking = asyncio.create_task(room.get_batch(5))
    await asyncio.wait_for(empty, 20)
    taking.cancel()


async def test_many_are_parted_into_two_groups_that_take_turns() -> None:
    """While one is away in its pass, the other comes in; it stays so, however unevenly they came."""
    room: WorkQueue[int] = WorkQueue(100)
    room.put(0)
    came = await room.get_batch(100)
    for n in range(1, 64):
        room.put(n)
    sizes = []
    for _ in range(4):
        back, came = came, await room.get_batch(100)
        for guest in back:
            room.put(guest)
        sizes.append(len(came))
    assert sizes == [32, 32, 32, 32]


async def test_few_are_never_parted_and_a_first_crowd_is_not() -> None:
    """Nobody waits for a second pass to no purpose: those who came alone have nobody to take turns with."""
    room: WorkQueue[int] = WorkQueue(100)
    for n in range(90):
        room.put(n)
    assert len(await room.get_batch(100)) == 90
    room = WorkQueue(100)
    room.put(0)
    await room.get_batch(100)
    for n in range(FULL_BATCH_BELOW):
        room.put(n)
    assert len(await room.get_batch(100)) == FULL_BATCH_BELOW
