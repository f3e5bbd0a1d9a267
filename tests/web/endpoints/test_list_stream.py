"""List streams: every state after each change, found by one look for all streams of the process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import ClientResponse
from attrs import define, evolve, field

from app.storage.errors import StorageUnavailable
from app.storage.search.changes import ChangeMark, ChangePage
from app.web.streams import feed, list_stream
from tests.web.conftest import Response, Start, Web
from tests.web.example import Shipment

PATH = "/v1/shipments/stream"


@define
class Stream:
    """An open stream of the application *web*."""

    web: Web
    response: ClientResponse
    last_id: str = field(default="", init=False)

    async def next(self) -> dict[str, Any] | None:
        """Return the data of the next event with data, or None at the end; note every id on the way."""
        data = None
        async with asyncio.timeout(30):
            while line := (await self.response.content.readline()).decode():
                name, _, value = line.rstrip("\r\n").partition(": ")
                if name == "id":
                    self.last_id = value
                elif name == "data":
                    data = json.loads(value)
                elif not name and data is not None:
                    return dict(data)
        return None

    async def position(self) -> str:
        """Return the next id."""
        before, self.last_id = self.last_id, ""
        async with asyncio.timeout(30):
            while not self.last_id:
                line = (await self.response.content.readline()).decode()
                if line.startswith("id: "):
                    self.last_id = line.removeprefix("id: ").strip()
        assert self.last_id >= before
        return self.last_id


@pytest.fixture(autouse=True)
def quick_looks(web: Web) -> None:
    web.streams.looks_every_seconds = web.streams.poll_seconds = 0.01


@asynccontextmanager
async def open_stream(web: Web, query: str = "", last_id: str | None = None) -> AsyncIterator[Stream]:
    """Open a stream; it follows the changes as soon as this returns."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    async with web.client.get(PATH + query, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        yield Stream(web, response)


def assert_refused(response: Response, status: int, code: str) -> None:
    assert (response.status, response.json["code"]) == (status, code)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 # what a task of the application does sets no event
            await asyncio.sleep(0.005)


def shipment(id: str, **members: Any) -> Shipment:
    return evolve(Shipment(id=id, owner="o", pieces=1), **members)


async def test_a_stream_sends_each_change_of_every_state_from_its_beginning_on(web: Web) -> None:
    """What was there before is in the list."""
    web.service.put(shipment("before"))
    async with open_stream(web) as stream:
        await stream.position()
        for id, place in ("p", "counter"), ("q", "counter"), ("p", "van"):
            web.service.put(shipment(id, place=place))
            found = await stream.next()
            assert found is not None
            assert (found["shipment_id"], found["place"]) == (id, place)


async def test_several_changes_of_one_state_may_be_one_event_with_the_latest_state(web: Web) -> None:
    """The last one is never left out."""
    async with open_stream(web) as stream:
        await stream.position()
        for pieces in range(1, 50):
            web.service.put(shipment("p", pieces=pieces))
            if pieces % 10 == 0:
                await asyncio.sleep(0)
        found: list[int] = []
        while not found or found[-1] != 49:
            event = await stream.next()
            assert event is not None
            found.append(event["pieces"])
        assert found == sorted(set(found))


async def test_a_stream_sends_only_what_meets_its_filters(web: Web) -> None:
    """They are those of the list; a state that is not shown is not sent."""
    async with open_stream(web, "?place=van,delivered&min_pieces=3") as stream:
        await stream.position()
        web.service.put(shipment("a", place="counter", pieces=5))
        web.service.put(shipment("b", place="van", pieces=2))
        web.service.put(shipment("c", place="nowhere", pieces=5))
        web.service.put(shipment("d", place="van", pieces=3))
        assert (await stream.next() or {})["shipment_id"] == "d"
        web.service.put(shipment("b", place="delivered", pieces=3))
        assert (await stream.next() or {})["shipment_id"] == "b"


@pytest.mark.parametrize("query", ["?place=moon", "?limit=3", "?cursor=x", "?nonsense=1", "?place=", "?min_pieces=1e0"])
async def test_an_invalid_query_is_refused_before_the_stream_begins(web: Web, query: str) -> None:
    """As the list refuses it; a stream has no pages."""
    assert_refused(await web.request("GET", PATH + query), 400, "invalid_query")


@pytest.mark.parametrize("id", ["x", "2026-01-01", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00Z~zz", "1", "2026-01-01T00:00:00+01:00"])
async def test_an_id_that_is_not_of_the_stream_is_refused(web: Web, id: str) -> None:
    """The client would believe that it has missed nothing."""
    response = await web.request("GET", PATH, headers={"Last-Event-ID": id})
    assert_refused(response, 400, "invalid_last_event_id")


@pytest.mark.parametrize("is_only_writer", [True, False])
async def test_a_client_that_connects_again_gets_what_it_has_missed(web: Web, is_only_writer: bool) -> None:
    """Exactly that, while the process remembers it: the database is not searched for it."""
    web.service.changes.is_only_writer = is_only_writer
    async with open_stream(web) as stream:
        web.service.put(shipment("a"))
        assert (await stream.next() or {})["shipment_id"] == "a"
        last_id = stream.last_id
    for id in "b", "c", "b":
        web.service.put(shipment(id, pieces=2))
    async with open_stream(web, last_id=last_id) as stream:
        found = {(await stream.next() or {})["shipment_id"] for _ in range(2)}
        assert found == {"b", "c"}
        web.service.put(shipment("d"))
        assert (await stream.next() or {})["shipment_id"] == "d"
    if is_only_writer:
        assert web.service.changes.searches == 0


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_after_a_restart_a_client_gets_what_it_has_missed_from_the_database(web: Web, start: Start, count: int) -> None:
    """All of it, and perhaps some that it has; the id of the last event then leads on from there."""
    async with open_stream(web) as stream:
        web.service.put(shipment("a"))
        await stream.next()
        last_id = stream.last_id
    again = await start()
    again.streams.looks_every_seconds = 0.01
    again.service.changes._time = web.service.changes._time
    for number in range(count):
        again.service.put(shipment(f"missed-{number}"))
    async with open_stream(again, last_id=last_id) as stream:
        found = [(await stream.next() or {})["shipment_id"] for _ in range(count)]
        assert found == [f"missed-{number}" for number in range(count)]
        assert stream.last_id != last_id
        again.service.put(shipment("later"))
        assert (await stream.next() or {})["shipment_id"] == "later"


async def test_a_stream_that_breaks_in_the_middle_is_repeated_from_its_beginning(web: Web, start: Start) -> None:
    """All events of one batch but the last have the id from which the batch began."""
    async with open_stream(web) as stream:
        first = await stream.position()
    again = await start()
    again.streams.looks_every_seconds = 0.01
    again.service.changes._time = web.service.changes._time
    for number in range(4):
        again.service.put(shipment(f"{number}"))
    async with open_stream(again, last_id=first) as stream:
        for number in range(3):
            assert (await stream.next() or {})["shipment_id"] == str(number)
            assert stream.last_id == first
        await stream.next()
        assert stream.last_id > first


async def test_all_streams_share_one_look(web: Web) -> None:
    """Fifty streams cost no more looks than one; without a stream there is none."""
    assert web.service.changes.marks == 0
    web.streams.looks_every_seconds = 0.2
    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(one_event(web))
        await until(lambda: web.streams.open_count == 50)
        web.service.put(shipment("p"))
    assert web.service.changes.marks <= 4


async def one_event(web: Web) -> None:
    async with open_stream(web) as stream:
        assert (await stream.next() or {})["shipment_id"] == "p"


async def test_looks_end_a_while_after_the_last_stream(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is watched, read or kept."""
    monkeypatch.setattr(feed, "LINGER_SECONDS", 0.05)
    async with open_stream(web) as stream:
        await stream.position()
        assert len(web.service.changes._watches) == 1
    await until(lambda: not web.service.changes._watches)
    marks = web.service.changes.marks
    await asyncio.sleep(0.05)
    assert web.service.changes.marks == marks
    async with open_stream(web) as stream:
        await stream.position()
        web.service.put(shipment("p"))
        assert (await stream.next() or {})["shipment_id"] == "p"


async def test_a_look_that_fails_is_repeated(web: Web) -> None:
    """What has changed meanwhile is sent once the database is back."""
    async with open_stream(web) as stream:
        await stream.position()
        web.service.failure = StorageUnavailable("gone")
        web.service.put(shipment("p"))
        await asyncio.sleep(0.05)
        web.service.failure = None
        assert (await stream.next() or {})["shipment_id"] == "p"


async def test_a_stream_does_not_begin_without_its_database(web: Web) -> None:
    """503, so that the client tries again later."""
    web.service.failure = StorageUnavailable("gone")
    assert_refused(await web.request("GET", PATH), 503, "database_unavailable")


async def test_a_client_that_is_far_behind_gets_the_latest_states_from_the_database(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A feed remembers a limited number of keys, and a stream none."""
    monkeypatch.setattr(feed, "KEYS_MAX", 3)
    async with open_stream(web) as stream:
        await stream.position()
        for number in range(20):
            web.service.put(shipment(f"{number:02}"))
        found: set[str] = set()
        while len(found) < 20:
            found.add((await stream.next() or {})["shipment_id"])
    assert web.service.changes.searches > 0


async def test_a_client_that_reads_nothing_loses_its_connection(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept for it meanwhile but what is in the buffers of its connection."""
    monkeypatch.setattr(list_stream, "SEND_SECONDS_MAX", 0.3)
    reader, writer = await asyncio.open_connection(web.server.host, web.server.port, limit=1024)
    writer.write(f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    number = 0
    async with asyncio.timeout(30):
        while web.streams.open_count:
            for _ in range(100):
                web.service.put(shipment(f"{number}", owner="x" * 10_000))
                number += 1
            await asyncio.sleep(0.01)
    writer.close()


async def test_head_answers_without_a_stream(web: Web) -> None:
    """With the headers of the stream, and nothing is followed."""
    response = await web.request("HEAD", PATH)
    assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
    assert web.service.changes.marks == 0


async def test_streams_end_when_the_server_does(web: Web) -> None:
    """Their clients connect to another process."""
    async with open_stream(web) as stream:
        await stream.position()
        web.streams.close()
        assert await stream.next() is None


async def test_a_feed_that_fails_ends_its_streams_and_begins_anew(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client must not wait for events that never come."""
    async with open_stream(web) as stream:
        last_id = await stream.position()
        with monkeypatch.context() as patched:
            patched.setattr(web.service.changes, "mark", None)
            assert await stream.next() is None
    web.service.put(shipment("p"))
    async with open_stream(web, last_id=last_id) as stream:
        assert (await stream.next() or {})["shipment_id"] == "p"


@pytest.mark.parametrize("found", [[], [("absent", "")]])
@pytest.mark.parametrize("ends", ["client", "server"])
async def test_a_search_ends_with_its_client_or_server(
    web: Web, monkeypatch: pytest.MonkeyPatch, ends: str, found: list[tuple[str, str]]
) -> None:
    """Also when no state that it finds meets the filters, so that nothing is written to the connection."""
    changes = web.service.changes

    async def endless(cls: type, mark: ChangeMark, after: str | None) -> ChangePage:
        changes.searches += 1
        await asyncio.sleep(0.001)
        return ChangePage(found, "absent")

    monkeypatch.setattr(changes, "since", endless)
    async with open_stream(web, last_id="2020-01-01T00:00:00Z") as stream:
        await until(lambda: changes.searches > 3)
        if ends == "server":
            web.streams.close()
            assert await stream.next() is None
        else:
            stream.response.close()
        await until(lambda: web.streams.open_count == 0)


async def test_an_id_from_the_begin_of_the_calendar_is_one(web: Web) -> None:
    """Everything is later."""
    async with open_stream(web, last_id="0001-01-01T00:00:00Z") as stream:
        web.service.put(shipment("p"))
        assert (await stream.next() or {})["shipment_id"] == "p"


async def test_a_clock_that_is_set_back_hides_no_change(web: Web) -> None:
    """The positions of a run only grow."""
    async with open_stream(web) as stream:
        await stream.position()
        web.service.changes._time -= timedelta(seconds=30)
        web.service.put(shipment("p"))
        assert (await stream.next() or {})["shipment_id"] == "p"
