"""State streams: one state after each change, over a connection that stays open."""

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
from app.web.streams import state_stream
from tests.web.conftest import Web, assert_problem
from tests.web.example import Shipment

SHIPMENT = Shipment(id="p", owner="o", pieces=1)
PATH = "/v1/shipments/p/stream"


@asynccontextmanager
async def open_stream(web: Web) -> AsyncIterator[ClientResponse]:
    async with web.client.get(PATH, headers={"X-Correlation-ID": "c-1"}) as response:
        yield response


async def next_event(response: ClientResponse) -> dict[str, Any] | None:
    """Return the next event's fields, or None at the end; comments are skipped."""
    fields: dict[str, Any] = {}
    async with asyncio.timeout(30):
        while line := (await response.content.readline()).decode():
            if line.strip():
                name, _, value = line.rstrip("\r\n").partition(": ")
                fields[name] = value
            elif fields.keys() - {""}:
                return {**fields, "data": json.loads(fields["data"])}
            else:
                fields = {}
    return None


async def wait_for_watchers(web: Web, count: int) -> None:
    """Wait until *count* streams watch the shipment."""
    await web.service.wait_until(lambda: len(web.service.watchers.get((Shipment, "p"), [])) == count)


async def test_a_stream_sends_the_present_state_and_each_change_until_the_final_one(web: Web) -> None:
    """After the final state the server ends the stream."""
    web.service.put(SHIPMENT)
    async with open_stream(web) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["X-Correlation-ID"] == "c-1"
        assert response.headers["Cache-Control"] == "no-store"
        events = []
        for place in ("counter", "van", "delivered"):
            web.service.put(evolve(SHIPMENT, place=place))
            events.append(await next_event(response))
        assert [(e["event"], e["data"]["place"]) for e in events if e] == [
            ("shipment", "counter"),
            ("shipment", "van"),
            ("shipment", "delivered"),
        ]
        assert len({e["id"] for e in events if e}) == 3
        assert await next_event(response) is None
    await wait_for_watchers(web, 0)
    assert web.streams.open_count == 0


async def test_a_final_state_is_sent_once(web: Web) -> None:
    """A client that connects after the end still gets the final state."""
    web.service.put(evolve(SHIPMENT, place="delivered"))
    async with open_stream(web) as response:
        event = await next_event(response)
        assert event is not None
        assert event["data"]["place"] == "delivered"
        assert await next_event(response) is None


async def test_a_client_that_has_the_final_state_gets_204(web: Web) -> None:
    """An EventSource connects again after each end, except after 204; one that has an earlier state gets the final one."""
    web.service.put(SHIPMENT)
    async with open_stream(web) as response:
        earlier = await next_event(response)
        web.service.put(evolve(SHIPMENT, place="delivered"))
        last = await next_event(response)
    assert earlier is not None
    assert last is not None
    for event, status in (earlier, 200), (last, 204):
        async with web.client.get(PATH, headers={"Last-Event-ID": event["id"]}) as response:
            assert response.status == status


async def test_a_change_before_the_first_read_is_not_missed(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch begins before the state is read, so a change in between wakes the stream."""
    web.service.put(SHIPMENT)
    get = web.service.get

    async def get_and_change(cls: type, key: str) -> Any:
        found = await get(cls, key)
        if web.service.reads == 1:
            web.service.put(evolve(SHIPMENT, place="delivered"))
        return found

    monkeypatch.setattr(web.service, "get", get_and_change)
    async with open_stream(web) as response:
        for place in ("counter", "delivered"):
            event = await next_event(response)
            assert event is not None
            assert event["data"]["place"] == place


async def test_a_change_by_another_process_is_sent_within_the_polling_interval(web: Web) -> None:
    """Another process notifies no watcher here; the stream reads the state again every few seconds."""
    assert state_stream.POLL_SECONDS <= 5
    web.streams.poll_seconds = 0.01
    web.service.put(SHIPMENT)
    async with open_stream(web) as response:
        await next_event(response)
        web.service.put(evolve(SHIPMENT, place="delivered"), silently=True)
        event = await next_event(response)
        assert event is not None
        assert event["data"]["place"] == "delivered"


async def test_an_unchanged_state_is_not_sent_again(web: Web) -> None:
    """Polling alone causes no event."""
    web.streams.poll_seconds = 0.001
    web.service.put(SHIPMENT)
    async with open_stream(web) as response:
        await next_event(response)
        await web.service.wait_until(lambda: web.service.reads >= 10)
        web.service.put(evolve(SHIPMENT, place="delivered"))
        event = await next_event(response)
        assert event is not None
        assert event["data"]["place"] == "delivered"


async def test_a_stream_of_an_unknown_state_is_404(web: Web) -> None:
    """The response is a problem document, and no stream begins."""
    assert (await web.request("GET", PATH)).json["code"] == "not_found"
    assert (await web.request("HEAD", PATH)).status == 404


async def test_a_database_outage_is_503_before_the_stream_begins_and_waited_out_afterwards(web: Web) -> None:
    """An open stream continues once the database is available again."""
    web.streams.poll_seconds = 0.01
    web.service.failure = StorageUnavailable("unavailable")
    assert (await web.request("GET", PATH)).status == 503
    web.service.failure = None
    web.service.put(SHIPMENT)
    async with open_stream(web) as response:
        await next_event(response)
        web.service.failure = StorageUnavailable("unavailable")
        web.service.put(evolve(SHIPMENT, place="delivered"))
        reads = web.service.reads
        await web.service.wait_until(lambda: web.service.reads >= reads + 3)
        web.service.failure = None
        event = await next_event(response)
        assert event is not None
        assert event["data"]["place"] == "delivered"


async def test_a_stream_that_fails_ends(web: Web) -> None:
    """The reason is not sent; the client can connect again."""
    web.service.put(SHIPMENT)
    async with open_stream(web) as response:
        await next_event(response)
        web.service.failure = RuntimeError("SELECT")
        web.service.put(SHIPMENT)
        assert await next_event(response) is None


async def test_head_returns_the_headers_of_a_stream(web: Web) -> None:
    """The response ends at once."""
    web.service.put(SHIPMENT)
    response = await web.request("HEAD", PATH)
    assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")


async def test_a_server_that_shuts_down_ends_its_streams_at_once(web: Web) -> None:
    """The shutdown does not wait for a final state."""
    web.service.put(SHIPMENT)
    async with open_stream(web) as response:
        await next_event(response)
        assert web.server.runner is not None
        web.server.runner._shutdown_timeout = 60.0  # the grace period for open connections
        async with asyncio.timeout(30):
            closing = asyncio.ensure_future(web.server.close())
            assert await next_event(response) is None
        await closing
    assert web.streams.open_count == 0


async def test_a_disconnected_client_ends_its_stream(web: Web) -> None:
    """The server notices it when it polls, at the latest."""
    web.streams.poll_seconds = 0.01
    web.service.put(SHIPMENT)
    async with open_stream(web) as response:
        await next_event(response)
        await wait_for_watchers(web, 1)
        response.close()
    await wait_for_watchers(web, 0)


async def test_a_quiet_stream_sends_pings(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment every fifteen seconds keeps proxies from closing the connection."""
    assert state_stream.PING_SECONDS == 15
    monkeypatch.setattr(state_stream, "PING_SECONDS", 0.01)
    web.service.put(SHIPMENT)
    async with open_stream(web) as response:
        await next_event(response)
        async with asyncio.timeout(30):
            assert (await response.content.readline()).startswith(b":")


async def test_the_number_of_open_streams_is_limited(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one gets a 503 with Retry-After; other requests are not affected."""
    monkeypatch.setattr(state_stream, "STREAMS_MAX", 1)
    web.service.put(SHIPMENT)
    async with open_stream(web) as response:
        await next_event(response)
        async with open_stream(web) as second:
            assert (second.status, second.headers["Retry-After"]) == (503, "5")
    assert_problem(await web.request("GET", "/nowhere"))
    assert (await web.request("GET", "/nowhere")).status == 404
