"""Watchers of states learn of each change, and leave nothing behind."""

from __future__ import annotations

import asyncio

import pytest
from attrs import frozen

from app.runtime.states.state_reader import StateWatchers


@frozen
class One:
    key: str


@frozen
class Other:
    key: str


@pytest.fixture
def watchers() -> StateWatchers:
    return StateWatchers({One: lambda state: state.key, Other: lambda state: state.key})


async def test_a_change_that_comes_while_the_last_one_is_handled_is_not_lost(watchers: StateWatchers) -> None:
    """Several may be merged into one; after the last of them there is one more turn."""
    async with watchers.watch(One, "a") as changes:
        watchers.notify([One("a"), One("a")])
        await asyncio.wait_for(anext(changes), 5)
        watchers.notify([One("a")])
        await asyncio.wait_for(anext(changes), 5)
        more = asyncio.ensure_future(anext(changes))
        watchers.notify([One("b"), Other("a")])
        await asyncio.sleep(0)
        assert not more.done()
        watchers.notify([Other("b"), One("a")])
        await asyncio.wait_for(more, 5)


async def test_the_end_of_one_watcher_leaves_the_others(watchers: StateWatchers) -> None:
    """Of the same state, and of the same class: also while they have noticed the same."""
    async with watchers.watch(One, "a") as changes:
        async with watchers.watch(One, "a"), watchers.watch(One, "b"):
            pass
        with watchers.watch_all(One) as keys, watchers.watch_all(Other) as others:
            with watchers.watch_all(One) as same:
                assert keys == same
            watchers.notify([One("a"), Other("c")])
            assert (keys, others, same) == ({"a"}, {"c"}, set())
        await asyncio.wait_for(anext(changes), 5)
        watchers.notify([One("b")])
        assert keys == {"a"}


async def test_nothing_is_left_of_a_watcher(watchers: StateWatchers) -> None:
    """Streams come and go for months, each for another order; without any, a commit does no work for them."""
    idle = [watchers.is_idle]
    for key in "ab":
        async with watchers.watch(One, key):
            with watchers.watch_all(One):
                idle.append(watchers.is_idle)
            idle.append(watchers.is_idle)
        idle.append(watchers.is_idle)
    with watchers.watch_all(One):
        async with watchers.watch(One, "a"):
            pass
        idle.append(watchers.is_idle)
    idle.append(watchers.is_idle)
    assert idle == [True, *(False, False, True) * 2, False, True]
    assert not watchers._by_state
    assert not watchers._key_sets
