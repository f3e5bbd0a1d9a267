"""Lists, a page at a time."""

from __future__ import annotations

import pytest

from tests.web.conftest import Web
from tests.web.example import Parcel


def fill(web: Web, count: int) -> None:
    for number in range(count):
        web.service.put(Parcel(id=f"p{number:03}", owner="odd" if number % 2 else "even", pieces=1))


@pytest.mark.parametrize(("limit", "pages"), [(1, 7), (3, 3), (7, 1), (200, 1)])
async def test_pages_make_up_the_whole_list(web: Web, limit: int, pages: int) -> None:
    """Every item once, newest first, and the last page says that it is the last."""
    fill(web, 7)
    seen, cursor = [], ""
    for page in range(1, pages + 1):
        answer = (await web.ask("GET", f"/v1/parcels?limit={limit}{cursor}")).json
        assert answer.keys() == {"items", "next_cursor"}
        seen += [item["parcel_id"] for item in answer["items"]]
        assert (answer["next_cursor"] is None) == (page == pages)
        cursor = f"&cursor={answer['next_cursor']}"
    assert seen == [f"p{number:03}" for number in reversed(range(7))]


async def test_a_page_has_fifty_unless_the_caller_says_otherwise(web: Web) -> None:
    """The default holds for callers who do not care."""
    fill(web, 60)
    assert len((await web.ask("GET", "/v1/parcels")).json["items"]) == 50
    assert len((await web.ask("GET", "/v1/parcels?limit=200")).json["items"]) == 60


async def test_a_filter_leaves_out_the_rest(web: Web) -> None:
    """And pages go on within it."""
    fill(web, 6)
    first = (await web.ask("GET", "/v1/parcels?owner=odd&limit=2")).json
    second = (await web.ask("GET", f"/v1/parcels?owner=odd&limit=2&cursor={first['next_cursor']}")).json
    assert [item["parcel_id"] for item in first["items"] + second["items"]] == ["p005", "p003", "p001"]
    assert second["next_cursor"] is None
    assert (await web.ask("GET", "/v1/parcels?owner=nobody")).json == {"items": [], "next_cursor": None}


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
async def test_a_query_that_is_not_understood_is_400(web: Web, query: str) -> None:
    """Nothing is guessed, nothing ignored; each error points at its parameter."""
    answer = await web.ask("GET", f"/v1/parcels?{query}")
    assert (answer.status, answer.json["code"]) == (400, "invalid_query")
    assert all(error["pointer"].startswith("/") for error in answer.json["errors"])


async def test_one_state_is_shown_by_its_key(web: Web) -> None:
    """And what the module does not want to be seen is not there."""
    web.service.put(Parcel(id="p", owner="o", pieces=2))
    web.service.put(Parcel(id="q", owner="o", pieces=2, place="nowhere"))
    answer = await web.ask("GET", "/v1/parcels/p")
    assert answer.json == {"parcel_id": "p", "owner": "o", "pieces": 2, "place": "counter"}
    assert (await web.ask("GET", "/v1/parcels/q")).status == 404
