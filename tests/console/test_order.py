"""The screen of one order: the sentence, the tree, what a person may do, and what happens when it is done."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.web.console.rendering import money
from app.web.console.screens.orders.actions import minor_units
from app.web.console.screens.orders.graph import LANE_WIDTH, ROW_HEIGHT, TOP, draw
from app.web.responses.problems import ProblemError
from tests.console.conftest import Browser, Served
from tests.console.test_now import call, ended, following, place, stock
from tests.process.client import eventually

pytestmark = pytest.mark.slow

ACTIONS = ("cancel", "refund", "settle")


def event(id: str, parent: str | None, subject: str, **others: Any) -> dict[str, Any]:
    """Return an event as an explanation has it."""
    return {
        "event_id": id,
        "parent_id": parent,
        "subject": subject,
        "module": subject.partition(".")[0],
        "at": "2026-11-28T10:00:00Z",
        "delivery": "local",
        "attempts": 1,
        **others,
    }


async def until(found: AsyncIterator[tuple[str, str]], end: str) -> AsyncIterator[tuple[str, str]]:
    """Yield the events up to the first one whose text has *end*."""
    async for name, text in found:
        yield name, text
        if end in text:
            return
    raise AssertionError("the stream ended")


async def paid(served: Served) -> tuple[str, str]:
    """Place an order; return its id and the address of its page once it is confirmed and all its events are delivered."""
    await stock(served)
    order_id = await place(served)
    assert (await ended(served, order_id))["status"] == "confirmed"

    async def explain() -> Any:
        return await call(served, "GET", f"/v1/orders/{order_id}/explain")

    await eventually(explain, lambda it: all(event["delivery"] != "pending" for event in it["events"]))
    return order_id, f"/console/orders/{order_id}"


async def test_the_page_says_in_a_sentence_where_the_order_stands(served: Served) -> None:
    """The sentence of the API, then the drawing with a lane for each module, and the same as a table."""
    order_id, path = await paid(served)
    explained = await call(served, "GET", f"/v1/orders/{order_id}/explain")
    seen = await (await served.as_role("viewer")).get(path)
    assert explained["summary"] in seen.words
    (drawing,) = seen.elements.all("svg", role="img")
    assert str(len(explained["events"])) in drawing["aria-label"]
    for module in "orders", "inventory", "payments":
        assert f">{module}</text>" in seen.text
    for each in explained["events"]:
        assert each["subject"] in seen.words
    for words in "Payment Status captured", "Amount 25.00 EUR", "charge succeeded", "Reservation", "2 × SKU-1", "No person has changed this order.":
        assert words in seen.words, words
    assert "sse-connect" not in seen.text  # nothing more happens to it by itself


async def test_an_order_in_flight_is_live(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its page follows it to its end."""
    _, path = await paid(served)
    request, statuses = served.application.parts.module_api.request, ["reserved", "reserved", "reserved", "confirmed"]

    async def slowly(method: str, path: str, **others: Any) -> Any:
        answer = await request(method, path, **others)
        if path.endswith("/explain"):
            answer.body["status"] = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        return answer

    monkeypatch.setattr(served.application.parts.module_api, "request", slowly)
    browser = await served.as_role("viewer")
    assert (await browser.get(path)).elements.all("div", **{"sse-connect": f"{path}/live", "sse-close": "ended"})
    async with following(browser, f"{path}/live") as found:
        seen = [text async for name, text in until(found, "</svg>confirmed</span></h2>")]
    assert "</svg>reserved</span></h2>" in seen[0]


async def test_an_unknown_order_is_not_found(served: Served) -> None:
    """On each of its pages."""
    browser = await served.as_role("operator")
    for rest in "", "/live", "/cancel", "/refund", "/replay/x":
        assert (await browser.get(f"/console/orders/01900000-0000-7000-8000-000000000000{rest}")).status == 404, rest


async def test_the_role_decides_what_a_person_may_do(served: Served) -> None:
    """A viewer has no button and may open no form; shop cancels; the operator also refunds. The API decides about all of it."""
    _, path = await paid(served)
    expected = {"viewer": set(), "shop": {"cancel"}, "operator": {"cancel", "refund"}}
    for role, offered in expected.items():
        browser = await served.as_role(role)
        seen = await browser.get(path)
        assert {name for name in ACTIONS if seen.elements.all("a", href=f"{path}/{name}")} == offered, role
        for name in ACTIONS:
            allowed = role == "operator" or name in offered
            assert (await browser.get(f"{path}/{name}")).status == (200 if allowed else 403), (role, name)
            (csrf, *_) = {own["value"] for own in seen.elements.all("input", name="csrf")}
            if not allowed:
                assert (await browser.post(f"{path}/{name}", {"csrf": csrf, "reason": "r"})).status == 403, (role, name)
    assert (await (await served.as_role("stock")).get(path)).status == 403


async def test_the_export_is_the_file_that_another_installation_imports(served: Served) -> None:
    """What the API exports, under a name with the order's id; a shop may not have it."""
    order_id, path = await paid(served)
    browser = await served.as_role("viewer")
    assert (await browser.get(path)).elements.all("a", href=f"{path}/export")
    seen = await browser.get(f"{path}/export")
    assert seen.headers["Content-Disposition"] == f'attachment; filename="order-{order_id}.json"'
    assert json.loads(seen.text) == await call(served, "GET", f"/v1/orders/{order_id}/export")
    shop = await served.as_role("shop")
    assert not (await shop.get(path)).elements.all("a", href=f"{path}/export")
    assert (await shop.get(f"{path}/export")).status == 403


async def test_a_cancellation_is_asked_for_first_and_audited_under_the_name_of_the_key(served: Served) -> None:
    """The page has a button that confirms it; the form cancels; the page of the order shows that it is done, and by whom."""
    order_id, path = await paid(served)
    browser = await served.as_role("operator")
    asked = await browser.get(f"{path}/cancel")
    assert "This cannot be undone." in asked.words
    assert (await call(served, "GET", f"/v1/orders/{order_id}"))["status"] == "confirmed"
    seen = await browser.submit(f"{path}/cancel", f"{path}/cancel", reason="Sent twice.")
    assert (seen.status, seen.headers["Location"]) == (303, f"{path}?done=cancel")
    order = await call(served, "GET", f"/v1/orders/{order_id}")
    assert order["status"] == "cancelled"
    records = (await call(served, "GET", f"/v1/audit?target={order_id}&module=orders"))["items"]
    assert [(record["actor"], record["action"]) for record in records] == [("operator", "cancelOrder")]
    after = await browser.get(f"{path}?done=cancel")
    assert "Done. The order is cancelled." in after.words
    assert "operator cancelOrder orders" in after.words
    assert "status: confirmed to cancelled" in after.words
    assert not after.elements.all("a", href=f"{path}/cancel")
    again = await browser.get(f"{path}/cancel")
    assert ("Not possible now." in again.words, again.elements.all("form", action=f"{path}/cancel")) == (True, [])


@pytest.mark.parametrize(
    ("fields", "amount"),
    [
        ({"what": "amount", "amount": "4,5"}, 450),
        ({"what": "items", "quantity-0": "1"}, 1250),
        ({"what": "all", "amount": "4", "quantity-0": "1"}, 2500),
    ],
)
async def test_a_refund_takes_an_amount_items_or_all_that_is_left(served: Served, fields: dict[str, str], amount: int) -> None:
    """In the usual unit of the currency; a form that is sent twice refunds once."""
    order_id, path = await paid(served)
    browser = await served.as_role("operator")
    page = await browser.get(f"{path}/refund")
    form = {own["name"]: own["value"] for own in page.elements.all("input", type="hidden") if own["name"] != "csrf"}
    (csrf, *_) = {own["value"] for own in page.elements.all("input", name="csrf")}
    for _ in range(2):
        seen = await browser.post(f"{path}/refund", {"csrf": csrf, "reason": "Broken.", **form, **fields})
        assert (seen.status, seen.headers.get("Location")) == (303, f"{path}?done=refund"), seen.words
    refunds = (await call(served, "GET", f"/v1/orders/{order_id}"))["refunds"]
    assert [each["amount"]["amount"] for each in refunds] == [amount]


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"what": "amount", "amount": "1.234", "reason": "r"}, 400, "at most 2 digits"),
        ({"what": "amount", "amount": "NaN", "reason": "r"}, 400, "must be a number of EUR"),
        ({"what": "amount", "amount": "99", "reason": "r"}, 409, ""),
        ({"what": "items", "reason": "r"}, 400, "Give the quantity"),
        ({"what": "items", "quantity-0": "²", "reason": "r"}, 400, "whole number"),
        ({"what": "all", "reason": ""}, 400, "reason"),
    ],
)
async def test_a_refused_form_is_shown_again_with_the_reason(
    served: Served, fields: dict[str, str], status: int, message: str
) -> None:
    """Nothing is done, and what was typed is still there."""
    order_id, path = await paid(served)
    browser = await served.as_role("operator")
    seen = await browser.submit(f"{path}/refund", f"{path}/refund", **fields)
    assert (seen.status, "Not done." in seen.words, message in seen.words) == (status, True, True), seen.words
    assert seen.elements.all("input", name="amount", value=fields.get("amount", ""))
    assert "refunds" not in await call(served, "GET", f"/v1/orders/{order_id}")


async def test_a_key_of_one_customer_sees_that_customers_orders_only(served: Served) -> None:
    """Another customer's order does not exist for it; its own can be cancelled."""
    await stock(served)
    mine, theirs = await place(served, "c-1"), await place(served, "c-2")
    browser: Browser = await served.as_role("web-1")
    for order_id, status in (mine, 200), (theirs, 404):
        for rest in "", "/cancel":
            assert (await browser.get(f"/console/orders/{order_id}{rest}")).status == status
    assert (await browser.get(f"/console/orders/{theirs}/live")).status == 404


async def test_what_is_out_of_reach_is_named(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows the rest, and no state in place of the missing one."""
    _, path = await paid(served)
    request = served.application.parts.module_api.request

    async def without_payments(method: str, path: str, **others: Any) -> Any:
        answer = await request(method, path, **others)
        if path.endswith("/explain"):
            answer.body.update(payment=None, unreachable=["payments"], reasons={"payments": "no answer within 2 s"}, is_complete=False)
        return answer

    monkeypatch.setattr(served.application.parts.module_api, "request", without_payments)
    seen = await (await served.as_role("operator")).get(path)
    assert "Out of reach: payments." in seen.words
    assert "payments: no answer within 2 s." in seen.words
    assert "Payment out of reach" in seen.words
    assert not seen.elements.all("a", href=f"{path}/refund")


async def test_a_dead_letter_of_the_order_can_be_replayed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a page that asks, which shows why it failed."""
    _, path = await paid(served)
    letter = {
        "id": "l-1", "consumer": "payments-gateway", "subject": "payments.charge_requested.v1", "error": "ValueError", "detail": "no <key>",
        "attempts": 5, "first_seen": "2026-11-28T10:00:00Z", "last_seen": "2026-11-28T10:01:00Z", "replays": 0,
    }  # fmt: skip
    request, replayed = served.application.parts.module_api.request, []

    async def with_letter(method: str, path: str, **others: Any) -> Any:
        if path.endswith("/replay"):
            replayed.append((method, path, others["module"], others["principal"].name))
            return await request("GET", "/v1/overview", principal=others["principal"])
        answer = await request(method, path, **others)
        if path.endswith("/explain"):
            answer.body["dead_letters"] = [letter]
        return answer

    monkeypatch.setattr(served.application.parts.module_api, "request", with_letter)
    viewer, operator = await served.as_role("viewer"), await served.as_role("operator")
    assert "payments-gateway ValueError no <key>" in (await viewer.get(path)).words
    assert (await viewer.get(f"{path}/replay/l-1")).status == 403
    assert (await operator.get(path)).elements.all("a", href=f"{path}/replay/l-1")
    assert (await operator.get(f"{path}/replay/l-2")).status == 404
    seen = await operator.submit(f"{path}/replay/l-1", f"{path}/replay/l-1")
    assert (seen.status, seen.headers["Location"]) == (303, f"{path}?done=replay")
    assert replayed == [("POST", "/v1/dead-letters/l-1/replay", "payments", "operator")]


def test_each_event_is_a_row_in_the_lane_of_its_module() -> None:
    """A line leads from each cause to each effect; a fourth module gets a lane; timers come last."""
    events = [
        event("1", None, "orders.created.v2"),
        event("2", "1", "inventory.reserved.v1", delivery="published", at="2026-11-28T10:00:00.250000Z"),
        event("3", "2", "shipping.packed.v1", attempts=3, at="2026-11-28T10:05:00Z"),
        event("4", "gone", "orders.confirmed.v1", delivery="dead", at="2026-11-28T10:00:02Z"),
    ]
    timers = [{"module": "orders", "name": "timeout", "subject": "orders.timed_out.v1", "due_at": "2026-11-28T10:15:00Z"}]
    graph = draw(events, timers, ("orders", "inventory", "payments"))
    assert [lane.name for lane in graph.lanes] == ["orders", "inventory", "payments", "shipping"]
    assert [(node.x // LANE_WIDTH, (node.y - TOP) // ROW_HEIGHT) for node in graph.nodes] == [(0, 0), (1, 1), (3, 2), (0, 3), (0, 4)]
    assert [node.title for node in graph.nodes] == ["created.v2", "reserved.v1", "packed.v1", "confirmed.v1", "timed_out.v1"]
    assert [node.detail for node in graph.nodes] == [
        "10:00:00.000", "10:00:00.250 · +250 ms", "10:05:00.000 · +5 min · 3 attempts", "10:00:02.000 · +2.0 s", "due 10:15:00",
    ]  # fmt: skip
    assert [node.kind for node in graph.nodes] == ["local", "published", "local", "dead", "timer"]
    assert [edge.kind for edge in graph.edges] == ["local", "published"]
    assert (graph.width, graph.height > TOP + 5 * ROW_HEIGHT) == (4 * LANE_WIDTH, True)


@pytest.mark.parametrize(
    ("text", "currency", "amount"),
    [("12.50", "EUR", 1250), ("12,5", "EUR", 1250), ("7", "JPY", 7), ("1.234", "KWD", 1234), ("0.01", "EUR", 1)],
)
def test_an_amount_is_read_in_the_unit_of_its_currency(text: str, currency: str, amount: int) -> None:
    """ISO 4217 gives the number of digits that stand behind the point; what is shown is what was typed."""
    assert minor_units(text, currency) == amount
    assert money({"amount": amount, "currency": currency}).endswith(f" {currency}")


@pytest.mark.parametrize(("text", "currency"), [("", "EUR"), ("-1", "EUR"), ("0", "EUR"), ("1.5", "JPY"), ("inf", "EUR"), ("1e30", "EUR"), ("x", "EUR")])
def test_what_is_no_amount_is_refused(text: str, currency: str) -> None:
    """Nothing is rounded."""
    with pytest.raises(ProblemError):
        minor_units(text, currency)
