"""Lists and single states: paging, filters, look-up by key."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.web.conftest import Web
from tests.web.example import Shipment


def fill(web: Web, count: int) -> None:
    for number in range(count):
        web.service.put(Shipment(id=f"p{number:03}", owner="odd" if number % 2 else "even", pieces=1))


@pytest.mark.parametrize(("limit", "pages"), [(1, 7), (3, 3), (7, 1), (200, 1)])
async def test_the_pages_together_are_the_whole_list(web: Web, limit: int, pages: int) -> None:
    """Every item appears once, newest first, and only the last page has no next cursor."""
    fill(web, 7)
    seen, cursor = [], ""
    for page in range(1, pages + 1):
        response = (await web.request("GET", f"/v1/shipments?limit={limit}{cursor}")).json
        assert response.keys() == {"items", "next_cursor"}
        seen += [item["shipment_id"] for item in response["items"]]
        assert (response["next_cursor"] is None) == (page == pages)
        cursor = f"&cursor={response['next_cursor']}"
    assert seen == [f"p{number:03}" for number in reversed(range(7))]


async def test_a_page_has_fifty_items_by_default_and_at_most_two_hundred(web: Web) -> None:
    """``limit`` changes the size of a page."""
    fill(web, 60)
    assert len((await web.request("GET", "/v1/shipments")).json["items"]) == 50
    assert len((await web.request("GET", "/v1/shipments?limit=200")).json["items"]) == 60


async def test_a_filter_applies_to_every_page(web: Web) -> None:
    """Only matching items are listed, and paging continues among them."""
    fill(web, 6)
    first = (await web.request("GET", "/v1/shipments?owner=odd&limit=2")).json
    second = (await web.request("GET", f"/v1/shipments?owner=odd&limit=2&cursor={first['next_cursor']}")).json
    assert [item["shipment_id"] for item in first["items"] + second["items"]] == ["p005", "p003", "p001"]
    assert second["next_cursor"] is None
    assert (await web.request("GET", "/v1/shipments?owner=unknown")).json == {"items": [], "next_cursor": None}


@pytest.mark.parametrize(
    "query",
    [
        *(f"limit={limit}" for limit in ("0", "201", "-1", "x", "1.0", "", "1e2", "%2B5", "007", "9" * 5000, "%D9%A1")),
        *(
            "colour=red",
            "limit=1&limit=2",
            "owner=a&owner=b",
            "owner=",
            "owner=%00",
            "owner=a%0Ab",
            f"owner={'x' * 65}",
        ),
        *("cursor=", "cursor=4oCo%0A"),
    ],
)
async def test_an_invalid_query_is_400(web: Web, query: str) -> None:
    """No parameter is guessed or ignored; each error points at its parameter."""
    response = await web.request("GET", f"/v1/shipments?{query}")
    assert (response.status, response.json["code"]) == (400, "invalid_query")
    assert all(error["pointer"].startswith("/") for error in response.json["errors"])


@pytest.mark.parametrize("cursor", ["!", "a", "cDAwMQ==", "cDAwMR", "_w", "AA", "A" * 500, "AAAAAAAAcDAwMQ"])
async def test_a_cursor_that_was_never_issued_is_400(web: Web, cursor: str) -> None:
    """It does not select the first page, or an empty one."""
    response = await web.request("GET", f"/v1/shipments?cursor={cursor}")
    assert (response.status, response.json["code"]) == (400, "invalid_cursor")
    assert [error["pointer"] for error in response.json["errors"]] == ["/cursor"]


FILTERS = ["", "owner=odd", "owner=even", "place=van", "place=van,counter", "min_pieces=1", "owner=odd&place=van"]


@pytest.mark.parametrize("issued", FILTERS)
@pytest.mark.parametrize("used", FILTERS)
async def test_a_cursor_is_valid_for_its_own_list_only(web: Web, issued: str, used: str) -> None:
    """With other filters it would select a page of another list; the size of the page may change."""
    fill(web, 6)
    cursor = (await web.request("GET", f"/v1/shipments?limit=1&{issued}")).json["next_cursor"]
    response = await web.request("GET", f"/v1/shipments?limit=2&{used}&cursor={cursor}")
    assert response.status == (200 if issued == used else 400)
    if issued != used:
        assert response.json["code"] == "invalid_cursor"


async def test_a_page_that_stopped_early_has_a_next_cursor(web: Web) -> None:
    """A search examines a limited number of states; the next page continues where it stopped."""
    fill(web, 6)
    web.service.stops_at = "p003"
    first = (await web.request("GET", "/v1/shipments?owner=unknown")).json
    assert (first["items"], first["next_cursor"] is None) == ([], False)
    web.service.stops_at = None
    second = await web.request("GET", f"/v1/shipments?owner=unknown&cursor={first['next_cursor']}")
    assert second.json == {"items": [], "next_cursor": None}


async def test_filters_become_conditions(web: Web) -> None:
    """Integers are integers, times are times, a list has alternatives."""
    await web.request("GET", "/v1/shipments?min_pieces=12&place=van,counter&since=2026-01-01T01:00:00.5%2B01:00&owner=12")
    assert [(c.filter.name, c.values) for c in web.service.conditions] == [
        ("owner", ("12",)),
        ("place", ("van", "counter")),
        ("min_pieces", (12,)),
        ("since", (datetime(2026, 1, 1, 0, 0, 0, 500_000, UTC),)),
    ]


async def test_a_filter_takes_ten_alternatives(web: Web) -> None:
    """An eleventh one is refused, see below."""
    response = await web.request("GET", "/v1/shipments?place=" + "van,counter," * 4 + "van,delivered")
    assert response.status == 200
    assert len(web.service.conditions[0].values) == 10


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        *((f"min_pieces={value}", "/min_pieces") for value in ("0", "-1", "x", "1.0", "01", "1e3", "9" * 40)),
        *((f"place={value}", "/place") for value in ("VAN", "van,", ",van", "van,,counter", "shelf", "van,counter," * 5 + "van")),
        *((f"since={value}", "/since") for value in ("today", "2026-01-01", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00")),
    ],
)
async def test_a_value_that_no_resource_can_have_is_400(web: Web, query: str, pointer: str) -> None:
    """The error names the filter."""
    response = await web.request("GET", f"/v1/shipments?{query}")
    assert (response.status, response.json["code"]) == (400, "invalid_query")
    assert {error["pointer"] for error in response.json["errors"]} == {pointer}


async def test_a_state_is_shown_by_its_key(web: Web) -> None:
    """A state that the module does not show is 404, as if it did not exist."""
    web.service.put(Shipment(id="p", owner="o", pieces=2))
    web.service.put(Shipment(id="q", owner="o", pieces=2, place="nowhere"))
    response = await web.request("GET", "/v1/shipments/p")
    assert response.json == {"shipment_id": "p", "owner": "o", "pieces": 2, "place": "counter"}
    assert (await web.request("GET", "/v1/shipments/q")).status == 404
