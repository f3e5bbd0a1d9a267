"""The HTTP contract of orders, inventory and payments, tested by a client."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from tests.process.client import Client, Reply, eventually
from tests.process.conftest import Serve
from tests.process.invariants import check_invariants
from tests.process.server import Server

UNKNOWN = "01890000-0000-7000-8000-000000000000"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")


def assert_problem(reply: Reply, status: int, code: str | None = None) -> Any:
    """Check that *reply* is a complete problem document; return it."""
    assert reply.status == status, reply.text
    assert reply.headers["Content-Type"].startswith("application/problem+json")
    problem = reply.body
    assert problem.keys() >= {"type", "title", "status", "detail", "instance", "code", "correlation_id"}
    assert problem["status"] == status
    assert problem["correlation_id"] == reply.headers["X-Correlation-ID"]
    assert code in (None, problem["code"])
    return problem


async def test_an_order_is_charged_shipped_and_confirmed(client: Client) -> None:
    """The POST is answered with 202 and a Location; the order, the payment, the stock and the timeline follow."""
    await client.stock("SKU-1", 100, amount=1250)
    await client.stock("SKU-2", 5, amount=1)
    body = {
        "customer_id": "c-7",
        "items": [
            {"product_id": "SKU-1", "quantity": 2},
            {"product_id": "SKU-2", "quantity": 1},
            {"product_id": "SKU-1", "quantity": 1},
        ],
        "payment_method": "pm_card",
    }
    reply = await client.request("POST", "/v1/orders", body)
    assert reply.status == 202
    assert reply.headers["Content-Type"].startswith("application/json")
    assert reply.body == {"order_id": str(UUID(reply.body["order_id"])), "status": "processing"}
    order_id = reply.body["order_id"]
    assert reply.headers["Location"] == f"/v1/orders/{order_id}"
    assert "Idempotency-Replayed" not in reply.headers

    streamed = await client.wait_until_final(order_id)
    order = await client.get(reply.headers["Location"])
    assert streamed == order
    assert order.keys() == {
        "order_id", "customer_id", "status", "reason", "items", "total", "priority", "created_at", "updated_at", "timeline",
        "correlation_id",
    }  # fmt: skip
    assert (order["order_id"], order["customer_id"], order["status"]) == (order_id, "c-7", "confirmed")
    assert (order["reason"], order["priority"]) == (None, "normal")
    assert order["items"] == [{"product_id": "SKU-1", "quantity": 3}, {"product_id": "SKU-2", "quantity": 1}]
    assert order["total"] == {"amount": 3751, "currency": "EUR"}
    events = [entry["event"] for entry in order["timeline"]]
    assert events == ["orders.created", "inventory.reserved", "orders.confirmed"]
    for time in (order["created_at"], order["updated_at"], *(entry["at"] for entry in order["timeline"])):
        assert TIMESTAMP.fullmatch(time)

    payment = await client.get(f"/v1/payments/{order_id}")
    assert payment.keys() == {
        "order_id", "status", "amount", "attempts", "reference", "refunded", "refund_status", "needs_settling", "dispute",
        "updated_at",
    }  # fmt: skip
    assert (payment["status"], payment["amount"], payment["attempts"]) == ("captured", order["total"], 1)
    assert payment["reference"]

    async def product() -> Any:
        return await client.get("/v1/inventory/SKU-1")

    shipped = await eventually(product, lambda product: product["reserved"] == 0)
    assert shipped == {
        "product_id": "SKU-1", "name": None, "on_hand": 97, "reserved": 0, "available": 97,
        "unit_price": {"amount": 1250, "currency": "EUR"},
    }  # fmt: skip
    await check_invariants(client, [order_id], {"SKU-1": 100, "SKU-2": 5})


async def test_a_confirmed_order_can_be_cancelled(client: Client) -> None:
    """The stock is released and the payment refunded; a second request gives the same 202 and undoes nothing twice."""
    await client.stock("SKU-1", 10)
    order_id = await client.place({"SKU-1": 4})
    assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    first = await client.cancel(order_id, "changed my mind")
    assert (first["status"], first["reason"]) == ("cancelled", "requested")
    await client.wait_for_payment(order_id, "refunded")
    again = await client.cancel(order_id)
    assert (again["order_id"], again["status"], again["reason"]) == (order_id, "cancelled", "requested")
    (order,) = await check_invariants(client, [order_id], {"SKU-1": 10})
    events = [entry["event"] for entry in order["timeline"]]
    assert events[:4] == ["orders.created", "inventory.reserved", "orders.confirmed", "orders.cancelled"]
    assert sorted(events[4:]) == ["inventory.released", "payments.refunded"]
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 10
    assert (await client.get(f"/v1/payments/{order_id}"))["status"] == "refunded"


@pytest.mark.slow
async def test_a_cancelled_order_has_a_reason(serve: Serve, connect: Callable[[Server], Client]) -> None:
    """Each rejection has its own reason, reserves nothing and charges nothing."""
    client = connect(serve(SIMULATED_DECLINE_OVER="1000"))
    await client.stock("SKU-1", 100)
    await client.stock("SKU-DOLLAR", 100, currency="USD")
    baskets: dict[str | None, dict[str, int]] = {
        "insufficient_stock": {"SKU-1": 101},
        "unknown_product": {"SKU-1": 1, "SKU-NOWHERE": 1},
        "mixed_currency": {"SKU-1": 1, "SKU-DOLLAR": 1},
        "payment_declined": {"SKU-1": 11},
        None: {"SKU-1": 10},
    }
    order_ids = {reason: await client.place(items) for reason, items in baskets.items()}
    for reason, order_id in order_ids.items():
        order = await client.wait_until_final(order_id)
        assert (order["status"], order["reason"]) == ("cancelled" if reason else "confirmed", reason)
    orders = await check_invariants(client, list(order_ids.values()), {"SKU-1": 100, "SKU-DOLLAR": 100})
    assert len(orders) == 5
    assert (await client.get(f"/v1/payments/{order_ids['payment_declined']}"))["status"] == "declined"
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 90


@pytest.mark.slow
async def test_an_express_order_is_confirmed(client: Client) -> None:
    """The order shows its priority and ends like any other; its messages have subjects of their own."""
    await client.stock("SKU-1", 10)
    order_id = await client.place({"SKU-1": 1}, priority="express")
    order = await client.wait_until_final(order_id)
    assert (order["status"], order["priority"]) == ("confirmed", "express")
    await check_invariants(client, [order_id], {"SKU-1": 10})
    page = (await client.request("GET", "/metrics")).text
    assert 'messages_published_total{subject="orders.created.v1.express"}' in page
    assert 'subject="orders.created.v1"' not in page


@pytest.mark.slow
async def test_lists_are_paged_and_filtered(client: Client) -> None:
    """Newest first, every order once for any page size; filters apply; invalid parameters are rejected."""
    await client.stock("SKU-1", 4)
    placed = []
    for number in range(7):
        placed.append(await client.place({"SKU-1": 1}, customer_id=f"c-{number % 2}"))
        await client.wait_until_final(placed[-1])
    for limit in (1, 3, 7, 200):
        found = await client.list_all("/v1/orders", limit)
        assert [order["order_id"] for order in found] == placed[::-1]
    assert len((await client.get("/v1/orders"))["items"]) == 7
    one = await client.list_all("/v1/orders?customer_id=c-1", 2)
    assert [order["order_id"] for order in one] == placed[1::2][::-1]
    cancelled = await client.list_all("/v1/orders?status=cancelled", 2)
    assert [order["order_id"] for order in cancelled] == placed[4:][::-1]
    both = await client.list_all("/v1/orders?status=confirmed&customer_id=c-0")
    assert [order["order_id"] for order in both] == [placed[2], placed[0]]
    assert await client.get("/v1/orders?customer_id=unknown") == {"items": [], "next_cursor": None}
    for query in ("limit=0", "limit=201", "limit=x", "status=lost", "cursor=%00", "customer_id=", "colour=red"):
        assert_problem(await client.request("GET", f"/v1/orders?{query}"), 400)

    for number in range(5):
        await client.stock(f"P-{number}", number)
    products = [product["product_id"] for product in await client.list_all("/v1/inventory", 2)]
    assert products == [*(f"P-{number}" for number in range(5)), "SKU-1"]


async def test_unknown_paths_and_methods_are_problems(shared_client: Client) -> None:
    """404 and 405 are problem documents; 405 has the Allow header."""
    for path in (
        f"/v1/orders/{UNKNOWN}", "/v1/orders/nonsense", f"/v1/orders/{UNKNOWN}/stream", "/v1/inventory/SKU-9",
        f"/v1/payments/{UNKNOWN}", "/v1/dead-letters/nothing", "/v2/orders",
    ):  # fmt: skip
        assert_problem(await shared_client.request("GET", path), 404)
    assert_problem(await shared_client.request("POST", f"/v1/orders/{UNKNOWN}/cancel"), 404, "order_not_found")
    assert_problem(
        await shared_client.request("POST", "/v1/inventory/SKU-9/restock", {"quantity": 1}), 404, "product_not_found"
    )
    for method, path in (("DELETE", "/v1/orders"), ("PUT", f"/v1/orders/{UNKNOWN}"), ("POST", "/v1/payments/x")):
        reply = await shared_client.request(method, path)
        assert_problem(reply, 405)
        assert "GET" in reply.headers["Allow"]


@pytest.mark.slow
async def test_the_stock_cannot_be_set_below_the_reserved_quantity(
    serve: Serve, connect: Callable[[Server], Client]
) -> None:
    """It is answered with 409 while an order reserves more; a higher value is accepted."""
    client = connect(serve(SIMULATED_LATENCY_MS="1000"))
    await client.stock("SKU-1", 10)
    order_id = await client.place({"SKU-1": 4})
    async for order in client.stream(order_id):
        if order["status"] == "reserved":
            break
    product = await client.get("/v1/inventory/SKU-1")
    assert (product["on_hand"], product["reserved"], product["available"]) == (10, 4, 6)
    body = {"on_hand": 3, "unit_price": {"amount": 100, "currency": "EUR"}}
    assert_problem(await client.request("PUT", "/v1/inventory/SKU-1", body), 409, "below_reserved")
    assert await client.get("/v1/inventory/SKU-1") == product
    assert (await client.stock("SKU-1", 4))["available"] == 0
    assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    await check_invariants(client, [order_id], {"SKU-1": 4})


@pytest.mark.parametrize(
    ("amount", "currency", "pointer"),
    [(100, "X" * 3, "/unit_price/currency"), (1005, "KWD", "/unit_price/amount"), (150, "MGA", "/unit_price/amount")],
)
async def test_a_price_that_cannot_be_charged_is_refused(
    shared_client: Client, amount: int, currency: str, pointer: str
) -> None:
    """The problem points at the member; the price is not set. Prices in unusual currencies that can be charged are."""
    path = f"/v1/inventory/SKU-{currency}"
    body = {"on_hand": 3, "unit_price": {"amount": amount, "currency": currency}}
    problem = await shared_client.request("PUT", path, body)
    assert_problem(problem, 422, "price_not_chargeable")
    assert [error["pointer"] for error in problem.body["errors"]] == [pointer]
    assert (await shared_client.request("GET", path)).status == 404
    for unusual in ("ISK", 1), ("UGX", 7), ("MGA", 500), ("KWD", 5120), ("HUF", 1):
        price = {"amount": unusual[1], "currency": unusual[0]}
        assert (await shared_client.request("PUT", path, body | {"unit_price": price})).status == 200


@pytest.mark.slow
async def test_a_restock_with_one_idempotency_key_counts_once(client: Client) -> None:
    """The same key with another body is rejected; on another route it is a different key."""
    await client.stock("SKU-1", 1)
    key = {"Idempotency-Key": '"restock-1"'}
    replies = await asyncio.gather(
        *(client.request("POST", "/v1/inventory/SKU-1/restock", {"quantity": 5}, key) for _ in range(10))
    )
    assert {reply.status for reply in replies} == {200}
    assert {reply.body["on_hand"] for reply in replies} == {6}
    assert [reply.headers.get("Idempotency-Replayed") for reply in replies].count("true") == 9
    bare = await client.request(
        "POST", "/v1/inventory/SKU-1/restock", {"quantity": 5}, {"Idempotency-Key": "restock-1"}
    )
    assert bare.headers.get("Idempotency-Replayed") == "true"
    other = await client.request("POST", "/v1/inventory/SKU-1/restock", {"quantity": 6}, key)
    assert_problem(other, 422, "idempotency_key_reused")
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 6
    order_id = await client.place({"SKU-1": 1}, "restock-1")
    assert_problem(await client.post({"SKU-1": 2}, "restock-1"), 422, "idempotency_key_reused")
    for bad in ("", "k" * 256, "a b\u00e9", '"open'):
        reply = await client.request("POST", "/v1/orders", None, {"Idempotency-Key": bad})
        assert reply.status == 400, (bad, reply.text)
    await check_invariants(client, [order_id], {"SKU-1": 6})


@pytest.mark.slow
async def test_the_stream_of_an_order_shows_each_change_and_ends(
    serve: Serve, connect: Callable[[Server], Client]
) -> None:
    """It starts with the current state; for an order in a final state it has only that state."""
    client = connect(serve(SIMULATED_LATENCY_MS="200"))
    await client.stock("SKU-1", 10)
    for priority in ("normal", "express"):
        order_id = await client.place({"SKU-1": 1}, priority=priority)
        seen = [order["status"] async for order in client.stream(order_id)]
        assert seen[-2:] == ["reserved", "confirmed"]
        assert seen[:-2] in ([], ["processing"])
        assert [order["status"] async for order in client.stream(order_id)] == ["confirmed"]
