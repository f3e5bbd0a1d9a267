"""Concurrent requests for the same resource."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.process.client import Client
from tests.process.invariants import check_invariants
from tests.process.server import Server


@pytest.mark.slow
async def test_fifty_posts_with_one_idempotency_key_are_one_order(server: Server, client: Client) -> None:
    """One key is one order and one charge; every other response is marked as replayed."""
    await client.stock("SKU-1", 100)
    replies = await asyncio.gather(*(client.post({"SKU-1": 2}, "one-key") for _ in range(50)))
    assert {reply.status for reply in replies} == {202}
    (order_id,) = {reply.body["order_id"] for reply in replies}
    assert len({reply.text for reply in replies}) == 1
    assert {reply.headers["Location"] for reply in replies} == {f"/v1/orders/{order_id}"}
    replayed = [reply.headers.get("Idempotency-Replayed") for reply in replies]
    assert Counter(replayed) == {"true": 49, None: 1}
    await client.wait_until_final(order_id)

    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    after = await client.post({"SKU-1": 2}, "one-key")
    assert (after.status, after.text, after.headers["Idempotency-Replayed"]) == (202, replies[0].text, "true")
    await check_invariants(client, [order_id], {"SKU-1": 100})
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 98


@pytest.mark.slow
async def test_the_last_ten_pieces_of_two_products_go_to_ten_of_a_hundred_orders(client: Client) -> None:
    """Whatever the order of the lines, ten orders get both products, no order gets only one, and there is no deadlock."""
    await client.stock("SKU-A", 10)
    await client.stock("SKU-B", 10)
    baskets = ({"SKU-A": 1, "SKU-B": 1}, {"SKU-B": 1, "SKU-A": 1})
    order_ids = await asyncio.gather(*(client.place(baskets[n % 2]) for n in range(100)))
    orders = await check_invariants(client, order_ids, {"SKU-A": 10, "SKU-B": 10})
    assert Counter((order["status"], order["reason"]) for order in orders) == {
        ("confirmed", None): 10,
        ("cancelled", "insufficient_stock"): 90,
    }
    for product_id in ("SKU-A", "SKU-B"):
        product = await client.get(f"/v1/inventory/{product_id}")
        assert (product["on_hand"], product["reserved"], product["available"]) == (0, 0, 0)


@pytest.mark.slow
async def test_concurrent_cancellations_undo_an_order_once(client: Client) -> None:
    """At every step of the order, and with several cancellations at the same time."""
    await client.stock("SKU-1", 200)

    async def place_and_cancel(number: int) -> str:
        order_id = await client.place({"SKU-1": 1})
        await asyncio.sleep(number * 0.0005)  # so that each cancellation arrives at a different step
        responses = await asyncio.gather(*(client.cancel(order_id, f"no {n}") for n in range(3)))
        assert {answer["status"] for answer in responses} == {"cancelled"}
        return order_id

    order_ids = await asyncio.gather(*(place_and_cancel(number) for number in range(100)))
    orders = await check_invariants(client, order_ids, {"SKU-1": 200})
    assert Counter((order["status"], order["reason"]) for order in orders) == {("cancelled", "requested"): 100}
    assert (await client.get("/v1/inventory/SKU-1"))["on_hand"] == 200


@pytest.mark.slow
async def test_a_price_that_was_read_before_orders_came_sells_nothing_twice(client: Client) -> None:
    """A hundred pieces; ten orders take thirty; the price is set with the stock that was read before: 412, or by PATCH."""
    await client.stock("SKU-1", 100)
    path = "/v1/inventory/SKU-1"
    read = await client.request("GET", path)
    early = await asyncio.gather(*(client.place({"SKU-1": 3}) for _ in range(10)))
    for order_id in early:
        await client.wait_until_final(order_id)
    price = {"amount": 1350, "currency": "EUR"}
    stale = await client.request(
        "PUT", path, {"on_hand": read.body["on_hand"], "unit_price": price}, {"If-Match": read.headers["ETag"]}
    )
    assert (stale.status, stale.body["code"]) == (412, "precondition_failed")
    patched = await client.request("PATCH", path, {"unit_price": price})
    assert (patched.status, patched.body["on_hand"], patched.body["unit_price"]) == (200, 70, price)

    late = await asyncio.gather(*(client.place({"SKU-1": 3}) for _ in range(40)), *(_adjust(client, path) for _ in range(3)))
    orders = [*early, *(each for each in late if isinstance(each, str))]
    sold = 0
    for order_id in orders:
        sold += 3 if (await client.wait_until_final(order_id))["status"] == "confirmed" else 0
    product = await client.get("/v1/inventory/SKU-1")
    assert product["on_hand"] + sold == 100 - sum(each for each in late if isinstance(each, int))
    assert product["reserved"] == 0


async def _adjust(client: Client, path: str) -> int:
    """Take two damaged pieces out; return how many were: none if orders have reserved all that is left."""
    reply = await client.request("POST", f"{path}/adjust", {"quantity": -2, "reason": "damaged"})
    assert (reply.status, reply.body.get("code")) in ((200, None), (409, "below_reserved")), reply.text
    return 2 if reply.status == 200 else 0
