"""One state as it changes, over a connection that stays open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientResponse
from attrs import evolve

from app.storage.errors import StorageUnavailable
from app.web.endpoints import state_stream as follow
from tests.web.conftest import Web, assert_problem
from tests.web.example import Parcel

PARCEL = Parcel(id="p", owner="o", pieces=1)
PATH = "/v1/parcels/p/stream"


@asynccontextmanager
async def stream(web: Web) -> AsyncIterator[ClientResponse]:
    async with web.client.get(PATH, headers={"X-Correlation-ID": "c-1"}) as response:
        yield response


async def event(response: ClientResponse) -> dict[str, Any] | None:
    """Return the next event's fields, or None at the end; comments are skipped."""
    fields: dict[str, Any] = {}
    async with asyncio.timeout(5):
        while line := (await response.content.readline()).decode():
            if line.strip():
                name, _, value = line.rstrip("\r\n").partition(": ")
                fields[name] = value
            elif fields.keys() - {""}:
                return {**fields, "data": json.loads(fields["data"])}
            else:
                fields = {}
    return None


async def watched(web: Web, count: int) -> None:
    """Wait until *count* streams watch the parcel."""
    await web.service.until(lambda: len(web.service.watchers.get((Parcel, "p"), [])) == count)


async def test_a_stream_shows_the_present_and_then_each_change_until_it_is_over(web: Web) -> None:
    """The last event is the terminal state, and then the stream ends by itself."""
    web.service.put(PARCEL)
    async with stream(web) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["X-Correlation-ID"] == "c-1"
        assert response.headers["Cache-Control"] == "no-cache"
        seen = []
        for place in ("counter", "van", "delivered"):
            web.service.put(evolve(PARCEL, place=place))
            seen.append(await event(response))
        assert [(e["event"], e["data"]["place"]) for e in seen if e] == [
            ("parcel", "counter"),
            ("parcel", "van"),
            ("parcel", "delivered"),
        ]
        assert len({e["id"] for e in seen if e}) == 3
        assert await event(response) is None
    await watched(web, 0)
    assert web.streams.open == 0


async def test_what_is_over_is_shown_once(web: Web) -> None:
    """Who comes late still hears how it ended."""
    web.service.put(evolve(PARCEL, place="delivered"))
    async with stream(web) as response:
        shown = await event(response)
        assert shown is not None
        assert shown["data"]["place"] == "delivered"
        assert await event(response) is None


async def test_a_change_before_the_first_read_is_not_missed(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch begins before the state is read: what happens in between wakes the stream."""
    web.service.put(PARCEL)
    get = web.service.get

    async def slow_get(cls: type, key: str) -> Any:
        found = await get(cls, key)
        if web.service.reads == 1:
            web.service.put(evolve(PARCEL, place="delivered"))
        return found

    monkeypatch.setattr(web.service, "get", slow_get)
    async with stream(web) as response:
        for place in ("counter", "delivered"):
            shown = await event(response)
            assert shown is not None
            assert shown["data"]["place"] == place


async def test_a_change_that_nobody_told_of_is_seen_in_time(web: Web) -> None:
    """Another process wakes nobody here; the state is read again from time to time."""
    assert follow.REREAD_SECONDS <= 5
    web.streams.reread_seconds = 0.01
    web.service.put(PARCEL)
    async with stream(web) as response:
        await event(response)
        web.service.put(evolve(PARCEL, place="delivered"), silently=True)
        shown = await event(response)
        assert shown is not None
        assert shown["data"]["place"] == "delivered"


async def test_reading_again_says_nothing_new(web: Web) -> None:
    """A state that is as it was is not sent a second time."""
    web.streams.reread_seconds = 0.001
    web.service.put(PARCEL)
    async with stream(web) as response:
        await event(response)
        await web.service.until(lambda: web.service.reads >= 10)
        web.service.put(evolve(PARCEL, place="delivered"))
        shown = await event(response)
        assert shown is not None
        assert (shown["id"], shown["data"]["place"]) == ("2", "delivered")


async def test_an_unknown_one_is_404_before_any_stream(web: Web) -> None:
    """A problem, like everywhere else."""
    assert (await web.ask("GET", PATH)).json["code"] == "not_found"
    assert (await web.ask("HEAD", PATH)).status == 404


async def test_a_database_out_of_reach_is_503_before_and_patience_after(web: Web) -> None:
    """A stream that has begun waits for the database to come back."""
    web.streams.reread_seconds = 0.01
    web.service.trouble = StorageUnavailable("away")
    assert (await web.ask("GET", PATH)).status == 503
    web.service.trouble = None
    web.service.put(PARCEL)
    async with stream(web) as response:
        await event(response)
        web.service.trouble = StorageUnavailable("away")
        web.service.put(evolve(PARCEL, place="delivered"))
        reads = web.service.reads
        await web.service.until(lambda: web.service.reads >= reads + 3)
        web.service.trouble = None
        shown = await event(response)
        assert shown is not None
        assert shown["data"]["place"] == "delivered"


async def test_a_stream_that_fails_ends(web: Web) -> None:
    """Nothing of the reason gets out; the listener comes again."""
    web.service.put(PARCEL)
    async with stream(web) as response:
        await event(response)
        web.service.trouble = RuntimeError("SELECT")
        web.service.put(PARCEL)
        assert await event(response) is None


async def test_head_of_a_stream_is_its_head(web: Web) -> None:
    """And it does not wait for anything."""
    web.service.put(PARCEL)
    answer = await web.ask("HEAD", PATH)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")


async def test_a_server_that_goes_down_ends_its_streams_at_once(web: Web) -> None:
    """Nobody waits for a parcel that will take days."""
    web.service.put(PARCEL)
    async with stream(web) as response:
        await event(response)
        async with asyncio.timeout(0.9):  # the grace for open connections is a second
            closing = asyncio.ensure_future(web.server.close())
            assert await event(response) is None
        await closing
    assert web.streams.open == 0


async def test_a_listener_who_goes_is_noticed(web: Web) -> None:
    """At the next reading at the latest."""
    web.streams.reread_seconds = 0.01
    web.service.put(PARCEL)
    async with stream(web) as response:
        await event(response)
        await watched(web, 1)
        response.close()
    await watched(web, 0)


async def test_a_quiet_stream_is_pinged(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment every fifteen seconds keeps proxies from hanging up."""
    assert follow.PING_SECONDS == 15
    monkeypatch.setattr(follow, "PING_SECONDS", 0.01)
    web.service.put(PARCEL)
    async with stream(web) as response:
        await event(response)
        async with asyncio.timeout(5):
            assert (await response.content.readline()).startswith(b":")


async def test_there_are_only_so_many_streams(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is told to come later."""
    monkeypatch.setattr(follow, "STREAMS_MAX", 1)
    web.service.put(PARCEL)
    async with stream(web) as response:
        await event(response)
        async with stream(web) as second:
            assert (second.status, second.headers["Retry-After"]) == (503, "5")
    assert_problem(await web.ask("GET", "/nowhere"))
    assert (await web.ask("GET", "/nowhere")).status == 404
