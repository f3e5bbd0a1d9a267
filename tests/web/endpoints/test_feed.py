"""The looks that all streams of a process share: none leaves a change out, and what they remember is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest
from attrs import evolve

from app.storage.errors import StorageUnavailable
from app.storage.search.changes import VISIBILITY_DELAY_MAX
from app.web.streams import feed
from app.web.streams.feed import FeedRun, Look
from app.web.streams.list_stream import _latest_keys
from tests.web.example import SHIPMENTS, Shipment, show
from tests.web.fake_service import NOW, FakeService

Begin = Callable[..., Awaitable[FeedRun]]

A, B, C = (Shipment(id=id, owner="o", pieces=1) for id in "abc")


@pytest.fixture
def service() -> FakeService:
    return FakeService(SHIPMENTS)


@pytest.fixture
async def begin(service: FakeService) -> AsyncIterator[Begin]:
    """Return a function that begins a run with one follower, whose looks the test makes."""
    closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    runs = []

    async def start(*, is_only_writer: bool = True) -> FeedRun:
        service.changes.is_only_writer = is_only_writer
        runs.append(FeedRun(service.changes, Shipment, show, looks_every_seconds=3600.0))
        await runs[-1].start(closed)
        runs[-1].followers = 1
        return runs[-1]

    yield start
    closed.set_result(None)
    for run in runs:
        await run._task


def keys_after(run: FeedRun, position: object) -> list[str]:
    found = run.looks_after(position)  # type: ignore[arg-type]
    assert found is not None
    return [key for look in found for key in look.keys]


@pytest.mark.parametrize("is_only_writer", [True, False])
async def test_a_look_that_fails_on_the_way_is_repeated_whole(
    begin: Begin, service: FakeService, monkeypatch: pytest.MonkeyPatch, is_only_writer: bool
) -> None:
    """The keys were found, and the states not read: the next look finds the keys again."""
    run = await begin(is_only_writer=is_only_writer)
    position = run.position
    service.put(A)

    async def gone(cls: type, keys: object) -> None:
        raise StorageUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(service.changes, "load", gone)
        with pytest.raises(StorageUnavailable):
            await run._look()
    await run._look()
    assert keys_after(run, position) == ["a"]


async def test_a_change_at_the_begin_of_a_run_is_found(begin: Begin, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the watch and the mark there is no moment that neither of them covers."""
    mark = service.changes.mark

    async def marked(cls: type) -> object:
        found = await mark(cls)
        service.put(A)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(service.changes, "mark", marked)
        run = await begin()
    await run._look()
    assert keys_after(run, run._begins_at) == ["a"]


@pytest.mark.parametrize("is_only_writer", [True, False])
async def test_what_a_run_keeps_of_states_is_that_of_its_last_look(begin: Begin, service: FakeService, is_only_writer: bool) -> None:
    """An older state may have changed since, and all of them together would fill the memory."""
    run = await begin(is_only_writer=is_only_writer)
    for state in A, B, C:
        service.put(state)
        await run._look()
    assert [*run._latest] == ["c"]
    await run._look()
    assert run._versions == {}


async def test_a_state_is_loaded_as_it_is_now_if_the_last_look_has_not_read_it(
    begin: Begin, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look reads a limited number of states."""
    monkeypatch.setattr(feed, "LOAD_MAX", 1)
    run = await begin(is_only_writer=False)
    service.put(B)
    await run._look()
    service.put(A)
    service.put(evolve(B, pieces=2))
    await run._look()
    assert [each.state.pieces for each in await run.load(["a", "b"])] == [1, 2]


async def test_a_client_resumes_where_it_can_have_missed_nothing(begin: Begin, service: FakeService) -> None:
    """At its own position in the same run; in another one earlier, because what it has not seen may become visible late."""
    run = await begin()
    service.changes._time = NOW + 2 * VISIBILITY_DELAY_MAX
    await run._look()
    first, moment, future = run._begins_at, timedelta(microseconds=1), run.position + timedelta(hours=1)
    for position, instance, expected in (
        (first, run.instance, first),
        (first - moment, run.instance, None),
        (run.position, run.instance, run.position),
        (future, run.instance, run.position),  # the clock was set back
        (first, "other", None),
        (first + VISIBILITY_DELAY_MAX, "other", first),
        (first + VISIBILITY_DELAY_MAX - moment, "other", None),
        (future, "other", run.position),
    ):
        assert run.resumed(position, instance) == expected, (position, instance)


async def test_a_key_that_has_changed_twice_is_sent_where_it_has_changed_last() -> None:
    """A client that reads the events in their order ends with the latest one."""
    looks = [Look(NOW, ["a", "b"]), Look(NOW, ["c", "a"]), Look(NOW, ["d"])]
    assert [key async for keys in _latest_keys(looks) for key in keys] == ["b", "c", "a", "d"]
