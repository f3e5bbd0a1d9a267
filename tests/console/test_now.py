"""The screen Now: what it shows, live, for whom, and the curves of the last hour."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import ClientResponse

from app.telemetry.metrics import Metrics
from app.web.console.live import SHARE_MAX, pause_seconds
from app.web.console.samples import POINTS_MAX, Point, Samples
from app.web.console.screens.curves import HEIGHT, WIDTH, curves
from app.web.console.session import COOKIE
from tests.console.conftest import Browser, Served

pytestmark = pytest.mark.slow

ATTENTION = {
    "what": "The breaker for charges is <open>.",
    "since": "2026-11-28T10:00:00Z",
    "do": "Look at the provider.",
    "name": "BreakerOpen",
    "severity": "page",
    "guide": "howto/operate.html#when-the-circuit-breaker-is-open",
}


async def events(answer: ClientResponse) -> AsyncIterator[tuple[str, str]]:
    """Yield name and data of each server-sent event of *answer*."""
    name, data = "", []
    async for raw in answer.content:
        line = raw.decode().rstrip("\r\n")
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            data.append(line[6:])
        elif not line and name:
            yield name, "\n".join(data)
            name, data = "", []


@asynccontextmanager
async def following(browser: Browser, path: str) -> AsyncIterator[AsyncIterator[tuple[str, str]]]:
    """Open the live part at *path*, and enter with its events."""
    headers = {"Cookie": f"{COOKIE}={browser.cookie}", "Accept": "text/event-stream"}
    async with browser.session.get(browser.address + path, headers=headers) as answer:
        assert answer.status == 200
        async with asyncio.timeout(30):
            yield events(answer)


async def stock(served: Served, product: str = "SKU-1", on_hand: int = 100) -> None:
    """Set the stock of *product*."""
    await call(served, "PUT", f"/v1/inventory/{product}", {"on_hand": on_hand, "unit_price": {"amount": 1250, "currency": "EUR"}})


async def place(served: Served, customer: str = "c-1", product: str = "SKU-1", quantity: int = 2) -> str:
    """Place an order, and return its id."""
    body = {"customer_id": customer, "items": [{"product_id": product, "quantity": quantity}]}
    return str((await call(served, "POST", "/v1/orders", body))["order_id"])


async def call(served: Served, method: str, path: str, body: Any = None) -> Any:
    """Return the answer of the API to the operator."""
    headers = {"Authorization": "Bearer operator-key-0123456789"}
    async with served.session.request(method, served.address + path, json=body, headers=headers) as answer:
        assert answer.status < 300, await answer.text()
        return await answer.json()


async def ended(served: Served, order_id: str) -> Any:
    """Return the order once it is confirmed or cancelled."""
    headers = {"Authorization": "Bearer operator-key-0123456789"}
    async with served.session.get(f"{served.address}/v1/orders/{order_id}/stream", headers=headers) as answer:
        await answer.text()  # the stream ends with the order
    return await call(served, "GET", f"/v1/orders/{order_id}")


async def test_the_screen_shows_modules_dependencies_and_orders(served: Served) -> None:
    """With words and not by colour alone; a count leads to the orders that it counts."""
    await stock(served)
    await ended(served, await place(served))
    seen = await (await served.as_role("viewer")).get("/console")
    for words in ("What needs attention", "Confirmed 1", "orders reachable", "inventory reachable", "breaker closed", "Database of payments ok"):
        assert words in seen.words, words
    assert seen.elements.all("a", href="/console/orders?status=confirmed")
    assert seen.elements.all("div", **{"sse-connect": "/console/live", "sse-close": "ended"})


async def test_what_needs_attention_comes_first_with_since_when_and_what_to_do(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence, a time, what to do first, the section of the guide, and where the console helps."""
    request = served.application.parts.module_api.request

    async def with_attention(method: str, path: str, **others: Any) -> Any:
        answer = await request(method, path, **others)
        if path == "/v1/overview":
            answer.body["attention"] = [ATTENTION, {**ATTENTION, "name": "DiskLow", "severity": "ticket", "what": "The disk is full."}]
        return answer

    monkeypatch.setattr(served.application.parts.module_api, "request", with_attention)
    seen = await (await served.as_role("viewer")).get("/console")
    assert seen.words.index("The breaker for charges is <open>.") < seen.words.index("The disk is full.") < seen.words.index("Modules")
    assert "urgent The breaker" in seen.words
    assert "soon The disk" in seen.words
    assert "Look at the provider." in seen.words
    assert "docs/howto/operate.rst , “when the circuit breaker is open”" in seen.words.replace("rst,", "rst ,")
    assert {own["datetime"] for own in seen.elements.all("time")} >= {ATTENTION["since"]}
    assert seen.elements.all("a", href="/console/orders?waiting_for=payment")


async def test_a_module_out_of_reach_is_shown_as_that(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are unknown, and not 0."""
    request = served.application.parts.module_api.request

    async def without_orders(method: str, path: str, **others: Any) -> Any:
        answer = await request(method, path, **others)
        if path == "/v1/overview":
            answer.body["modules"]["orders"] = {
                "reachable": False, "reason": "no answer within 2 s", "outbox_pending": None, "outbox_oldest_seconds": None,
                "lag_seconds": None, "replicas": None,
            }  # fmt: skip
            answer.body["orders"] = dict.fromkeys(answer.body["orders"])
            answer.body["gateway"]["waiting"] = None
        return answer

    monkeypatch.setattr(served.application.parts.module_api, "request", without_orders)
    seen = await (await served.as_role("viewer")).get("/console")
    assert "orders unreachable no answer within 2 s – – – –" in seen.words
    assert "The process of orders, or its database, gives no answer." in seen.words


async def test_a_change_is_seen_without_a_reload_and_rendered_once_for_all(served: Served) -> None:
    """Two browsers get the same text after an order; what does not change is not sent again."""
    await stock(served)
    first, second = await served.as_role("viewer"), await served.as_role("operator")
    async with following(first, "/console/live") as one, following(second, "/console/live") as two:
        assert "Confirmed" in (await anext(one))[1]
        await ended(served, await place(served))
        async for name, text in one:
            if name == "state" and re.search(r">1</a>", text):
                break
        async for name, other in two:
            if name == "state" and re.search(r">1</a>", other):
                break
        assert text == other


async def test_ten_tabs_cost_what_one_does(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is read and rendered once for all; without a tab it is not read at all."""
    await stock(served)
    api, asked = served.application.parts.module_api, []
    request = api.request

    async def counted(method: str, path: str, **others: Any) -> Any:
        if path == "/v1/overview":
            asked.append(path)
        return await request(method, path, **others)

    monkeypatch.setattr(api, "request", counted)
    browser = await served.as_role("viewer")
    async with AsyncExitStack() as stack:
        tabs = [await stack.enter_async_context(following(browser, "/console/live")) for _ in range(10)]
        first = [await anext(tab) for tab in tabs]
        assert {name for name, _ in first} == {"state"}
        assert len({text for _, text in first}) <= len(asked)
        assert len(asked) <= 2  # a second step may have begun meanwhile


@pytest.mark.parametrize(
    ("step_seconds", "channels", "pause"), [(0.001, 1, 2.0), (0.02, 1, 2.0), (0.05, 1, 5.0), (0.1, 6, 60.0), (0.001, 50, 5.0)]
)
def test_all_channels_together_take_a_small_part_of_the_time(step_seconds: float, channels: int, pause: float) -> None:
    """At most 1 %: the longer a step takes and the more channels there are, the longer each of them waits."""
    assert pause_seconds(step_seconds, channels, 2.0) == pytest.approx(pause)
    assert channels * step_seconds / pause <= SHARE_MAX * 1.001


async def test_a_live_part_ends_with_its_session(served: Served) -> None:
    """The page loads itself anew, which leads to the log-in."""
    await stock(served)
    browser = await served.as_role("viewer")
    async with following(browser, "/console/live") as found:
        await anext(found)
        lines = [line for line in served.keys.read_text().splitlines() if not line.startswith("viewer:")]
        served.keys.write_text("\n".join(lines))
        served.application.reload(served.settings())
        await place(served)
        async for name, _ in found:
            if name == "ended":
                break
        else:
            pytest.fail("the stream ended without the event")


async def test_a_live_part_ends_when_the_role_of_its_key_changes(served: Served) -> None:
    """The page loads itself anew, with what the new role may see."""
    await stock(served)
    browser = await served.as_role("viewer")
    async with following(browser, "/console/live") as found:
        await anext(found)
        served.keys.write_text(served.keys.read_text().replace("viewer:viewer:", "viewer:shop:"))
        served.application.reload(served.settings())
        await place(served)
        async for name, _ in found:
            if name == "ended":
                break
        else:
            pytest.fail("the stream ended without the event")


async def test_the_role_decides_what_is_shown(served: Served) -> None:
    """metrics sees the curves; shop and stock get their own first screen; and none of them the live state."""
    seen = await (await served.as_role("metrics")).get("/console")
    assert "This role sees the curves only." in seen.words
    assert "Modules" not in seen.words
    assert (await (await served.as_role("shop")).get("/console")).headers["Location"] == "/console/orders"
    assert (await (await served.as_role("shop")).get("/console/live")).status == 403


def test_a_point_is_what_happened_within_its_interval() -> None:
    """Rates a second, what waits, and the mean age; an interval without a message has no age. An hour is kept."""
    moment, metrics = 1000.0, Metrics()
    samples = Samples(metrics, lambda: moment, lambda: moment)
    metrics.orders.labels("processing").inc(50)
    metrics.orders.labels("confirmed").inc(20)
    metrics.orders.labels("cancelled").inc(10)
    metrics.outbox_pending.labels("orders").set_function(lambda: 3.0)
    metrics.outbox_pending.labels("payments").set(4)
    metrics.message_lag_seconds.labels("orders").observe(0.5, 3)
    metrics.message_lag_seconds.labels("payments").observe(1.5)
    moment += 10
    samples.step()
    moment += 5
    metrics.orders.labels("processing").inc(5)
    samples.step()
    assert list(samples.points) == [Point(1010, 5.0, 3.0, 7, 0.75), Point(1015, 1.0, 0.0, 7, None)]
    for _ in range(POINTS_MAX):
        moment += 10
        samples.step()
    assert (len(samples.points), samples.points[-1].at - samples.points[0].at) == (360, 3590)


def test_a_drawing_ends_at_its_right_edge_and_has_gaps() -> None:
    """The newest point is at the right; the greatest value at the top; a missing value ends a piece."""
    points = [Point(1000 + 10 * number, 10.0 * number, 0.0, number, None if number == 2 else 0.1) for number in range(5)]
    orders, outbox, lag = curves(points)
    assert orders.lines[0].pieces[0].split()[0] == f"{WIDTH - 4.0:.1f},{HEIGHT - 1.0:.1f}"
    assert orders.lines[0].pieces[0].split()[-1] == f"{WIDTH:.1f},1.0"
    assert [len(piece.split()) for piece in lag.lines[0].pieces] == [2, 2]
    assert orjson.loads(outbox.data) == [[point.at for point in points], [0, 1, 2, 3, 4]]
    assert (orders.lines[0].latest, orders.lines[0].greatest) == (40.0, 40.0)
    assert [row[1] for row in outbox.rows] == [[4]]
    assert [curve.lines[0].pieces for curve in curves([])] == [[], [], []]
