"""Lists and single states: paging, filters, look-up by key."""

from __future__ import annotations

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
        *(f"cursor={cursor}" for cursor in ("", "!", "a", "cDAwMQ==", "cDAwMR", "_w", "AA", "4oCo%0A", "A" * 500)),
        *("%FF=1", "owner=%ED%A0%80%00"),
    ],
)
async def test_an_invalid_query_is_400(web: Web, query: str) -> None:
    """No parameter is guessed or ignored; each error points at its parameter."""
    response = await web.request("GET", f"/v1/shipments?{query}")
    assert (response.status, response.json["code"]) == (400, "invalid_query")
    assert all(error["pointer"].startswith("/") for error in response.json["errors"])


async def test_a_state_is_shown_by_its_key(web: Web) -> None:
    """A state that the module does not show is 404, as if it did not exist."""
    web.service.put(Shipment(id="p", owner="o", pieces=2))
    web.service.put(Shipment(id="q", owner="o", pieces=2, place="nowhere"))
    response = await web.request("GET", "/v1/shipments/p")
    assert response.json == {"shipment_id": "p", "owner": "o", "pieces": 2, "place": "counter"}
    assert (await web.request("GET", "/v1/shipments/q")).status == 404
