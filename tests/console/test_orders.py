"""The screen Orders: every filter, pages, live rows, the export, and what each role sees."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import ClientPayloadError
from loguru import logger

from app.web.console.screens.orders import listing as screen
from app.web.operations.module_api import ApiAnswer, ModuleUnreachable
from modules.orders.routes import REASONS, filters
from modules.orders.state import Status
from tests.console.conftest import Served
from tests.console.test_now import call, ended, following, place, stock


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect the lines that are logged."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="DEBUG")
    try:
        yield lines
    finally:
        logger.remove(sink)


def test_the_form_has_every_filter_of_the_api() -> None:
    """A filter that is added to the API is missing here; so is a status, or a reason."""
    assert {field.name for field in screen.FIELDS} == {filter.name for filter in filters}
    assert {field.name for field in screen.FIELDS if field.kind == "number"} == {
        filter.name for filter in filters if filter.schema["type"] == "integer"
    }
    assert {field.name for field in screen.FIELDS if field.kind == "datetime-local"} == {
        filter.name for filter in filters if filter.schema.get("format") == "date-time"
    }
    choices = {field.name: field.choices for field in screen.FIELDS if field.kind == "choice"}
    assert choices == {"status": tuple(status.value for status in Status), "reason": REASONS, "waiting_for": ("payment",)}
    assert set(screen.STATES) == {status.value for status in Status}


async def test_filters_are_in_the_address_and_in_the_form(served: Served) -> None:
    """A colleague who opens the address sees the same: fields, checked boxes, rows, and the links to the export and the stream."""
    await stock(served)
    wanted = await place(served, "c-1")
    other = await place(served, "c-2")
    for order_id in wanted, other:
        await ended(served, order_id)
    browser = await served.as_role("viewer")
    query = (
        "status=confirmed&status=cancelled&customer_id=c-1&created_after=2020-01-01T00%3A00&min_total=1&max_total="
        "&product_id=SKU-1&q=" + wanted[:13]
    )
    seen = await browser.get(f"/console/orders?{query}")
    assert seen.elements.all("a", href=f"/console/orders/{wanted}")
    assert not seen.elements.all("a", href=f"/console/orders/{other}")
    checked = {own["value"] for own in seen.elements.all("input", name="status") if "checked" in own}
    assert checked == {"confirmed", "cancelled"}
    assert seen.elements.all("input", name="created_after", value="2020-01-01T00:00:00")
    assert seen.elements.all("input", name="min_total", value="1")
    (live,) = [own["sse-connect"] for own in seen.elements.all("section") if "sse-connect" in own]
    assert "customer_id=c-1" in live
    assert "25.00 EUR" in seen.words
    async with following(browser, live) as found:
        name, text = await anext(found)
        assert (name, wanted in text, other in text) == ("orders", True, False)


async def test_a_wrong_filter_is_a_message(served: Served) -> None:
    """The reason of the API, with the name of the parameter, on the page and for the live part alike."""
    browser = await served.as_role("viewer")
    for path in "/console/orders?status=lost", "/console/orders/live?min_total=-1", "/console/orders?cursor=x":
        seen = await browser.get(path)
        assert seen.status == 400, path
        assert seen.elements.all("p", role="alert")


async def test_older_orders_are_on_further_pages(served: Served) -> None:
    """Each order is on one page; only the first page is live."""
    await stock(served, on_hand=1000)
    placed = {await place(served) for _ in range(screen.PAGE_MAX + 3)}
    browser = await served.as_role("viewer")
    first = await browser.get("/console/orders?customer_id=c-1")
    (older,) = [own["href"] for own in first.elements.all("a", rel="next")]
    assert older.startswith("/console/orders?customer_id=c-1&cursor=")
    second = await browser.get(older)
    ids = [re.findall(r'id="o-([0-9a-f-]+)"', page.text) for page in (first, second)]
    assert (len(ids[0]), len(ids[1])) == (screen.PAGE_MAX, 3)
    assert {*ids[0], *ids[1]} == placed
    assert "sse-connect" not in second.text
    assert second.elements.all("a", href="/console/orders?customer_id=c-1")


async def test_the_export_has_every_order_that_the_filters_select(served: Served) -> None:
    """One a line, as the API shows it, over all pages."""
    await stock(served, on_hand=1000)
    for _ in range(3):
        await ended(served, await place(served))
    await place(served, "c-2")
    browser = await served.as_role("viewer")
    seen = await browser.get("/console/orders/export?customer_id=c-1")
    assert seen.headers["Content-Disposition"] == 'attachment; filename="orders.ndjson"'
    listed = (await call(served, "GET", "/v1/orders?customer_id=c-1"))["items"]
    assert [json.loads(line) for line in seen.text.splitlines()] == listed
    assert len(listed) == 3


async def test_an_export_that_cannot_be_completed_breaks_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client notices: there is no message in place of the lines that are missing, and the body has no end."""
    monkeypatch.setattr(screen, "_EXPORT_PAGE", 1)
    await stock(served)
    for _ in range(2):
        await place(served)
    request = served.application.parts.module_api.request

    async def failing(method: str, path: str, **others: Any) -> Any:
        if "cursor" in (others.get("query") or {}):
            raise ModuleUnreachable("orders", "no connection")
        return await request(method, path, **others)

    monkeypatch.setattr(served.application.parts.module_api, "request", failing)
    browser = await served.as_role("viewer")
    with pytest.raises(ClientPayloadError):
        await browser.get("/console/orders/export")


async def test_a_live_part_whose_reading_is_refused_shows_that(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal of the API is a message on the page; it is no defect that is logged."""
    browser = await served.as_role("viewer")
    request = served.application.parts.module_api.request
    refused = ApiAnswer(503, {}, {"code": "database_unavailable", "detail": "The database is unavailable."})

    async def refusing(method: str, path: str, **others: Any) -> Any:
        return refused if others["principal"].name == "console" else await request(method, path, **others)

    monkeypatch.setattr(served.application.parts.module_api, "request", refusing)
    with logged() as lines:
        async with following(browser, "/console/orders/live") as found:
            name, text = await anext(found)
    assert (name, text) == ("problem", "The state cannot be read now. The page shows what was known before.")
    assert not [line for line in lines if "a live part" in line]


async def test_a_key_of_one_customer_sees_the_orders_of_that_customer(served: Served) -> None:
    """On the page, in the live part and in the export; another customer's filter is refused."""
    await stock(served)
    mine, theirs = await place(served, "c-1"), await place(served, "c-2")
    browser = await served.as_role("web-1")
    page = await browser.get("/console/orders")
    export = await browser.get("/console/orders/export")
    async with following(browser, "/console/orders/live") as found:
        _, text = await anext(found)
    for shown in page.text, export.text, text:
        assert (mine in shown, theirs in shown) == (True, False)
    assert (await browser.get("/console/orders?customer_id=c-2")).status == 403


@pytest.mark.slow
async def test_new_orders_appear_without_a_reload(served: Served) -> None:
    """The rows are sent again once one is placed."""
    await stock(served)
    browser = await served.as_role("viewer")
    async with following(browser, "/console/orders/live") as found:
        assert "No order is here." in (await anext(found))[1]
        order_id = await place(served)
        async for _, text in found:
            if order_id in text:
                break
        else:
            raise AssertionError("the stream ended")
