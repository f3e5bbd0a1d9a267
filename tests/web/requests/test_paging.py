"""Cursors: each belongs to one list, and continues it exactly where the page ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.web.requests.paging import read_page
from app.web.responses.problems import ProblemError

TEXT = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=5)
LISTS = st.tuples(st.sampled_from(["/v1/orders", "/v1/payments"]), st.dictionaries(st.sampled_from("abc"), TEXT))
KEYS = [f"k{number}" for number in range(5)]


def page(route: str, query: dict[str, str], stops_at: str | None = None) -> dict[str, Any]:
    """Return a page of a list of `KEYS`."""

    async def fetch(after: str | None, limit: int) -> tuple[Sequence[str], str | None]:
        return [key for key in KEYS if after is None or key > after][:limit], stops_at

    return asyncio.run(read_page(query, route, fetch, str, str))


@given(issued=LISTS, used=LISTS, is_same=st.booleans(), sizes=st.tuples(st.integers(1, 4), st.integers(1, 200)))
def test_a_cursor_continues_its_own_list_and_no_other(
    issued: tuple[str, dict[str, str]], used: tuple[str, dict[str, str]], is_same: bool, sizes: tuple[int, int]
) -> None:
    """A list is a route with its filters, in any order; pages of one list may have any size."""
    route, filters = issued
    if is_same:
        used = route, dict(reversed(filters.items()))
    first = page(route, {**filters, "limit": str(sizes[0])})
    query = {"cursor": first["next_cursor"], **used[1], "limit": str(sizes[1])}
    if used == issued:
        following = page(used[0], query)
        assert [*first["items"], *following["items"]] == KEYS[: sizes[0] + sizes[1]]
    else:
        with pytest.raises(ProblemError, match="cursor is invalid"):
            page(used[0], query)
