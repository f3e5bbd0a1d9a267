"""The list of charges is remembered between look-ups, and no charge in it is ever missed: it would be made twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from attrs import define, field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.gateways.stripe import intent_list
from app.gateways.stripe.charge_lookup import ChargeLookup
from app.gateways.stripe.error_table import StripeFault
from app.gateways.stripe.http_session import StripeRefusal
from app.gateways.stripe.intent_list import OVERLAP_SECONDS, IntentList
from tests.examples import examples


@define
class Provider:
    """A provider's list of charges: with a filter by time or without one, sorted newest first or oldest first."""

    can_filter: bool = True
    is_oldest_first: bool = False
    rows: list[dict[str, Any]] = field(factory=list)
    pages: int = 0

    def add(self, created: int) -> None:
        number = len(self.rows)
        self.rows.append({"id": f"pi_{number}", "created": created, "metadata": {"order_id": f"o-{number}"}})

    async def get(self, params: Mapping[str, Any]) -> Any:
        self.pages += 1
        if "created" in params and not self.can_filter:
            raise StripeRefusal(StripeFault(400, param="created"))
        bounds = params.get("created", {})
        rows = sorted(self.rows, key=lambda row: row["created"], reverse=not self.is_oldest_first)
        rows = [row for row in rows if bounds.get("gte", 0) <= row["created"] < bounds.get("lt", 1 << 40)]
        if (after := params.get("starting_after")) is not None:
            rows = rows[[row["id"] for row in rows].index(after) + 1 :]
        return {"data": rows[: params["limit"]], "has_more": len(rows) > params["limit"]}


@pytest.fixture(scope="module", autouse=True)
def small_pages() -> Any:
    """A list of some rows has several pages, and several readers."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PAGE": 3, "SMALL_PAGE": 2, "ALONE_PAGES": 2, "READERS": 3}.items():
            patch.setattr(intent_list, name, value)
        yield


async def missed(intents: IntentList, provider: Provider, since: int) -> set[str]:
    """Return the charges created at *since* or later that a look-up does not find: it neither reads nor remembers them."""
    found = {row["id"] async for row in intents.unread(since)}
    found |= {id for row in provider.rows for id in intents.ids(row["metadata"]["order_id"])}
    return {row["id"] for row in provider.rows if row["created"] >= since} - found


CHARGED = st.tuples(st.just("charge"), st.integers(0, 40), st.integers(0, OVERLAP_SECONDS))
LOOK_UP = st.tuples(st.just("look up"), st.integers(0, 200), st.just(0))


@settings(max_examples=examples(400), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.one_of(CHARGED, LOOK_UP), max_size=24),
    can_filter=st.booleans(), is_oldest_first=st.booleans(),
)  # fmt: skip
async def test_a_look_up_finds_every_charge_since_then(
    steps: list[tuple[str, int, int]], can_filter: bool, is_oldest_first: bool
) -> None:
    """
    Orders are looked up in any order, with any time between them; a charge may turn up in the list a moment late.

    A list without a filter that is sorted oldest first grows at its end only.
    """
    provider = Provider(can_filter, is_oldest_first and not can_filter)
    intents, now = IntentList(provider.get), 1_000
    for step, seconds, late in steps:
        if step == "charge":
            now += seconds
            provider.add(now if provider.is_oldest_first else now - late)
        else:
            assert await missed(intents, provider, now - seconds) == set()


@pytest.mark.parametrize(("seconds", "pages"), [(0, 1), (100, 1), (101, 2)])
async def test_what_was_read_is_not_read_again(seconds: int, pages: int) -> None:
    """A second look-up reads what came later, and the whole list only if it begins before the first one."""
    provider = Provider()
    for created in range(900, 1_001, 25):
        provider.add(created)
    intents = IntentList(provider.get)
    assert await missed(intents, provider, 900) == set()
    provider.pages = 0
    assert await missed(intents, provider, 1_000 - seconds) == set()
    assert provider.pages == pages


async def test_look_ups_that_share_a_scan_find_the_charges_of_all_their_orders() -> None:
    """The scan begins where the oldest of the orders was placed."""
    provider = Provider()
    for created in 900, 950, 1_000:
        provider.add(created)
    lookup = ChargeLookup(IntentList(provider.get).unread)
    found = await asyncio.gather(*(lookup.find(f"o-{n}", 890 + 50 * n) for n in (2, 0, 1)))
    assert [[row["id"] for row in rows] for rows in found] == [["pi_2"], ["pi_0"], ["pi_1"]]
    await lookup.close()
