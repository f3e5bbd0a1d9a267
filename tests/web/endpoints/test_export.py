"""Exports: all states that filters select, as one response that is whole or visibly broken off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import ClientPayloadError
from attrs import evolve

from app.storage.errors import StorageUnavailable
from app.web.streams import state_stream
from modules.filters import Filter
from modules.routes import ExportRoute, ListRoute
from tests.web.conftest import Start, Web
from tests.web.example import SHIPMENTS, Shipment, show

PATH = "/v1/exported"
HEAVY = Filter("heavy", {"type": "string", "enum": ["true"]}, columns=("owner",), keeps=lambda shipment: shipment.pieces > 2)
FIELDS: dict[str, Any] = {"summary": "x", "state": Shipment, "show": show, "response_schema": "Shipment", "newest_first": True, "filters": (HEAVY,)}
EXPORTED = evolve(
    SHIPMENTS,
    routes=(
        ExportRoute(name="exportShipments", path=PATH, **FIELDS),
        ListRoute(name="listHeavy", path="/v1/heavy", **FIELDS),
    ),
)


@pytest.fixture
async def web(start: Start) -> Web:
    return await start(module=EXPORTED)


def fill(web: Web, count: int) -> list[str]:
    """Put shipments of 1, 2, 3, 1, 2 ... pieces; return their ids, the newest first."""
    ids = [f"p{number:04}" for number in range(count)]
    for number, id in enumerate(ids):
        web.service.put(Shipment(id=id, owner="o", pieces=1 + number % 3))
    return ids[::-1]


async def exported(web: Web, query: str = "") -> list[str]:
    response = await web.request("GET", PATH + query)
    assert (response.status, response.headers["Content-Type"]) == (200, "application/x-ndjson")
    return [json.loads(line)["shipment_id"] for line in response.body.splitlines()]


@pytest.mark.parametrize("count", [0, 1, 200, 401])
async def test_an_export_has_every_state_once(web: Web, count: int) -> None:
    """However many pages that takes; a state that the module does not show is left out."""
    ids = fill(web, count)
    web.service.put(Shipment(id="hidden", owner="o", pieces=1, place="nowhere"))
    assert await exported(web) == ids


async def test_a_search_that_stops_on_the_way_goes_on(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is not full is the last one only if the search has come to the end."""
    ids = fill(web, 6)
    pages = {None: (["p0005"], "p0003"), "p0003": ([], "p0002"), "p0002": (["p0001", "p0000"], None)}

    async def search(cls: type, conditions: object, *, after: str | None, **_: Any) -> tuple[Sequence[Any], str | None]:
        keys, stopped_at = pages[after]
        return [web.service.states[cls, key] for key in keys], stopped_at

    monkeypatch.setattr(web.service, "search", search)
    assert await exported(web) == [ids[0], *ids[-2:]]


@pytest.mark.parametrize("path", [PATH, "/v1/heavy"])
async def test_a_filter_that_decides_about_states_counts(web: Web, path: str) -> None:
    """Where the column alone does not suffice, in a list and in an export."""
    fill(web, 6)
    response = await web.request("GET", f"{path}?heavy=true")
    found = response.json["items"] if path != PATH else [json.loads(line) for line in response.body.splitlines()]
    assert [shipment["shipment_id"] for shipment in found] == ["p0005", "p0002"]


async def test_an_export_that_fails_is_broken_off(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first page it is an answer; afterwards the client must see that it is not complete, and so when the server ends."""
    fill(web, 401)
    search = web.service.search

    async def failing(*arguments: Any, after: str | None, **more: Any) -> Any:
        if after is not None:
            raise StorageUnavailable("gone")
        return await search(*arguments, after=after, **more)

    with monkeypatch.context() as patched:
        patched.setattr(web.service, "search", failing)
        with pytest.raises(ClientPayloadError):
            await web.request("GET", PATH)
    web.service.failure = StorageUnavailable("gone")
    assert (await web.request("GET", PATH)).status == 503
    web.service.failure = None
    web.streams.close()
    with pytest.raises(ClientPayloadError):
        await web.request("GET", PATH)
    assert web.streams.open_count == 0


async def test_exports_count_as_streams(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps a connection and reads the database for as long as its client likes."""
    monkeypatch.setattr(state_stream, "STREAMS_MAX", 1)
    assert (await web.request("GET", PATH)).status == 200
    with web.streams.slot("other"):
        assert (await web.request("GET", PATH)).status == 503
        assert (await web.request("HEAD", PATH)).status == 200
