"""The screen Stock: what is low first, the search, and the forms that change a product."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.console.conftest import Browser, Seen, Served
from tests.console.test_now import call

pytestmark = pytest.mark.slow

Product = dict[str, Any]


async def api(served: Served, method: str, path: str, body: Any = None, **headers: str) -> Product:
    """Return the answer of the API to the key for stock."""
    sent = {"Authorization": "Bearer stock-key-0123456789", **headers}
    async with served.session.request(method, f"{served.address}{path}", json=body, headers=sent) as answer:
        assert answer.status < 300, await answer.text()
        found: Product = await answer.json()
        return found


async def put(served: Served, product_id: str, on_hand: int, amount: int = 1250, name: str | None = None) -> None:
    body = {"on_hand": on_hand, "unit_price": {"amount": amount, "currency": "EUR"}, **({"name": name} if name else {})}
    await api(served, "PUT", f"/v1/inventory/{product_id}", body)


def fields(seen: Seen) -> dict[str, str]:
    """Return every field of a page with its value, by name; of equal names the last."""
    return {own["name"]: own.get("value", "") for own in seen.elements.all("input") if "name" in own}


async def send(browser: Browser, page: str, action: str, **entered: str) -> Seen:
    """Open *page* and send its form to *action*, its own fields as they are, with what a person has *entered*."""
    return await browser.post(action, {**fields(await browser.get(page)), **entered})


async def test_what_is_low_comes_first_and_the_lowest_at_the_top(served: Served) -> None:
    """``low`` changes the limit, and the search finds by the beginning of an id."""
    for product_id, on_hand in (("A-1", 500), ("A-2", 7), ("B-1", 0), ("B-2", 80)):
        await put(served, product_id, on_hand)
    viewer = await served.as_role("viewer")
    seen = await viewer.get("/console/stock")
    assert re.search(r"Low stock .* B-1 – 0 0 0 12\.50 EUR A-2 – 7 .* All products .* A-1 .* A-2 .* B-1 .* B-2", seen.words)
    seen = await viewer.get("/console/stock?low=100")
    assert re.search(r"Low stock .* B-1 .* A-2 .* B-2 .* All products", seen.words)
    assert "Of every product more than 0 are available" not in (await viewer.get("/console/stock?low=0")).words
    found = await viewer.get("/console/stock?q=A-")
    assert re.search(r"Products that begin with “A-” .* A-1 .* A-2", found.words)
    assert "B-1" not in found.words
    assert "Low stock" not in found.words


async def test_a_long_list_has_pages(served: Served) -> None:
    """The next page goes on where the first ended."""
    for n in range(51):
        await put(served, f"P-{n:02}", 1000)
    viewer = await served.as_role("viewer")
    (following,) = [own["href"] for own in (await viewer.get("/console/stock")).elements.all("a") if "cursor=" in own["href"]]
    seen = await viewer.get(following)
    assert "P-50" in seen.words
    assert "P-49" not in seen.words


async def test_the_role_for_stock_changes_what_a_viewer_only_sees(served: Served) -> None:
    """A viewer has no form, and gets 403 for what is sent nevertheless; a shop does not see the screen."""
    await put(served, "A-1", 5)
    viewer, stock = await served.as_role("viewer"), await served.as_role("stock")
    for path in ("/console/stock", "/console/stock/A-1"):
        seen = await viewer.get(path)
        assert [own["action"] for own in seen.elements.all("form", method="post")] == ["/console/logout"]
        assert len((await stock.get(path)).elements.all("form", method="post")) > 1
    csrf = fields(await viewer.get("/console/stock"))["csrf"]
    for path in ("", "/A-1/adjust", "/A-1/restock", "/A-1/set"):
        assert (await viewer.post(f"/console/stock{path}", {"csrf": csrf, "quantity": "1"})).status == 403
    assert (await (await served.as_role("shop")).get("/console/stock")).status == 403


async def test_the_audit_of_a_change_has_the_correlation_id_of_the_page(served: Served) -> None:
    """One id leads from what the page shows to the log and to the record."""
    browser = await served.as_role("operator")
    browser.headers["X-Correlation-ID"] = "from-the-page"
    await browser.submit("/console/stock", "/console/stock", product_id="A-1", on_hand="3", amount="100", currency="EUR")
    seen = await browser.submit("/console/stock/A-1", "/console/stock/A-1/restock", quantity="2")
    assert seen.status == 303, seen.words
    records = (await call(served, "GET", "/v1/audit?target=A-1"))["items"]
    assert [record["correlation_id"] for record in records] == ["from-the-page"] * 2


async def test_a_product_is_created_restocked_adjusted_and_priced(served: Served) -> None:
    """Each form ends with a redirect to the product, which names what was done; a form that is sent twice counts once."""
    stock = await served.as_role("stock")
    page = "/console/stock/A-1"
    new = {"product_id": "A-1", "on_hand": "5", "amount": "1250", "currency": "EUR", "name": "Teapot"}
    done = await send(stock, "/console/stock", "/console/stock", **new)
    assert (done.status, done.headers["Location"]) == (303, f"{page}?done=create")
    assert (await send(stock, "/console/stock", "/console/stock", **new)).status == 409

    shown = await stock.get(page)
    attempts = [own["value"] for own in shown.elements.all("input", name="attempt")]
    form = {"csrf": fields(shown)["csrf"], "quantity": "3", "attempt": attempts[0]}
    for _ in range(2):
        done = await stock.post(f"{page}/restock", form)
        assert done.headers["Location"] == f"{page}?done=restock"
    done = await stock.post(f"{page}/adjust", {**form, "attempt": attempts[1], "quantity": "−2", "reason": "damaged"})
    assert done.headers["Location"] == f"{page}?done=adjust"
    assert "The stock is adjusted." in (await stock.get(done.headers["Location"])).words
    done = await send(stock, page, f"{page}/set", amount="1350", name="Pot")
    assert done.headers["Location"] == f"{page}?done=set"
    assert await api(served, "GET", "/v1/inventory/A-1") == {
        "product_id": "A-1", "name": "Pot", "on_hand": 6, "reserved": 0, "available": 6,
        "unit_price": {"amount": 1350, "currency": "EUR"},
    }  # fmt: skip


async def test_a_price_that_was_changed_meanwhile_is_shown_beside_the_entered_one(served: Served) -> None:
    """Nothing is overwritten; sending again with the page that shows both values sets the price."""
    await put(served, "A-1", 5)
    stock = await served.as_role("stock")
    page = "/console/stock/A-1"
    opened = fields(await stock.get(page))
    await put(served, "A-1", 5, amount=1999)
    conflict = await stock.post(f"{page}/set", {**opened, "amount": "1300"})
    assert conflict.status == 412
    assert re.search(r"Price ?1999 EUR ?1300 EUR", conflict.words)
    assert fields(conflict)["amount"] == "1300"
    assert (await api(served, "GET", "/v1/inventory/A-1"))["unit_price"]["amount"] == 1999
    assert (await stock.post(f"{page}/set", fields(conflict))).status == 303
    assert (await api(served, "GET", "/v1/inventory/A-1"))["unit_price"]["amount"] == 1300


async def test_an_order_that_was_placed_meanwhile_is_no_conflict(served: Served) -> None:
    """It changes the stock and with it the tag of the product, but neither price nor name."""
    await put(served, "A-1", 5)
    stock = await served.as_role("stock")
    page = "/console/stock/A-1"
    opened = fields(await stock.get(page))
    await put(served, "A-1", 4)
    assert (await stock.post(f"{page}/set", {**opened, "amount": "1300"})).status == 303
    found = await api(served, "GET", "/v1/inventory/A-1")
    assert (found["unit_price"]["amount"], found["on_hand"]) == (1300, 4)


@pytest.mark.parametrize(
    ("form", "entered", "status", "complaint"),
    [
        ("adjust", {"quantity": "-9", "reason": "lost"}, 409, "on_hand cannot be less"),
        ("adjust", {"quantity": "-1", "reason": ""}, 400, "/reason"),
        ("adjust", {"quantity": "x", "reason": "lost"}, 400, "/quantity must be an integer"),
        ("restock", {"quantity": "0"}, 400, "/quantity must be"),
        ("set", {"amount": "1.5"}, 400, "/unit_price/amount must be an integer"),
        ("set", {"currency": "ABC"}, 422, "currency"),
    ],
)
async def test_what_is_refused_stays_in_its_field_with_the_reason(
    form: str, entered: dict[str, str], status: int, complaint: str, served: Served
) -> None:
    """The API decides, so the page cannot allow what it refuses."""
    await put(served, "A-1", 5)
    stock = await served.as_role("stock")
    page = "/console/stock/A-1"
    seen = await send(stock, page, f"{page}/{form}", **{"reason": "r", **entered})
    assert seen.status == status, seen.words
    assert complaint in seen.words
    assert "Nothing was done." in seen.words
    for name, text in entered.items():
        assert text in [own.get("value") for own in seen.elements.all("input", name=name)]


async def test_ids_with_any_characters_have_a_page(served: Served) -> None:
    """A slash, a space, a percent sign and a quotation mark are escaped in addresses and in markup."""
    stock = await served.as_role("stock")
    for product_id in ("a/b", "a b%2F", "\"><b>'", "é&?#"):
        new = {"product_id": product_id, "on_hand": "5", "amount": "1", "currency": "EUR"}
        done = await send(stock, "/console/stock", "/console/stock", **new)
        assert done.status == 303, done.words
        assert (await stock.get(done.headers["Location"])).status == 200
    seen = await stock.get("/console/stock")
    for own in seen.elements.all("a", **{"class": "id"}):
        assert (await stock.get(own["href"])).status == 200, own
