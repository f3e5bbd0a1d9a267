"""Refunds and payments as a client and an operator use them: a real server, its API, and the commands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.gateways.fault import Fault, FaultyStripe
from tests.process.client import Client, eventually
from tests.process.conftest import Serve
from tests.process.server import Server, run

pytestmark = pytest.mark.slow

Connect = Callable[[Server], Client]


async def command(server: Server, *arguments: str) -> tuple[int, str]:
    """Run ``payments`` with *arguments*; return its exit code and what it printed."""
    done = await asyncio.to_thread(run, server.folder, "payments", *arguments, **server.settings)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def money(amount: int) -> dict[str, Any]:
    return {"amount": amount, "currency": "EUR"}


async def refund(client: Client, order_id: str, status: int, key: str | None = None, **body: Any) -> Any:
    """Ask for a refund; return the body of the answer, whose status must be *status*."""
    headers = {} if key is None else {"Idempotency-Key": key}
    reply = await client.request("POST", f"/v1/orders/{order_id}/refund", json={"reason": "broken", **body}, headers=headers)
    assert reply.status == status, reply
    return reply.body


async def test_an_order_is_refunded_in_parts_and_its_rest_after_a_cancellation(serve: Serve, connect: Connect) -> None:
    """By items, then by amount, once for each key; the cancellation refunds what is left and no more."""
    server = serve(HTTP_PORT="0")
    client = connect(server)
    await client.stock("SKU-1", 100, 400)
    await client.stock("SKU-2", 100, 200)
    order_id = await client.place({"SKU-1": 2, "SKU-2": 1})
    assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    asked = await refund(client, order_id, 202, "k-1", items=[{"product_id": "SKU-1", "quantity": 1}])
    assert [(each["amount"], each["status"]) for each in asked["refunds"]] == [(money(400), "pending")]
    assert await refund(client, order_id, 202, "k-1", items=[{"product_id": "SKU-1", "quantity": 1}]) == asked

    async def payment() -> Any:
        return await client.get(f"/v1/payments/{order_id}")

    found = await eventually(payment, lambda payment: payment["refund_status"] == "succeeded")
    assert (found["status"], found["refunded"], found["dispute"]) == ("captured", money(400), None)
    assert [(each["amount"], each["status"]) for each in found["refunds"]] == [(400, "succeeded")]
    assert (await refund(client, order_id, 409, amount=money(601)))["code"] == "exceeds_left"
    assert (await refund(client, order_id, 400, amount=money(1), items=[]))["code"] == "invalid_body"
    await refund(client, order_id, 202, amount=money(100))
    await eventually(payment, lambda payment: payment["refunded"] == money(500))
    await client.cancel(order_id)
    found = await client.wait_for_payment(order_id, "refunded")
    assert [each["amount"] for each in found["refunds"]] == [400, 100, 500]
    assert len({each["reference"] for each in found["refunds"]}) == 3

    async def order() -> Any:
        return await client.get(f"/v1/orders/{order_id}")

    shown = await eventually(order, lambda order: order.get("refunded") == money(1000))
    assert [each["status"] for each in shown["refunds"]] == ["succeeded"] * 3
    assert (await refund(client, order_id, 409))["code"] == "order_cancelled"
    assert (await refund(client, "0199fe00-0000-7000-8000-000000000000", 404))["code"] == "order_not_found"


async def test_payments_are_listed_by_status_and_time(serve: Serve, connect: Connect) -> None:
    """Over the API and by command, without those that were never requested."""
    server = serve(HTTP_PORT="0", SIMULATED_DECLINE_OVER="1000")
    client = connect(server)
    await client.stock("SKU-1", 100, 400)
    orders = [await client.place({"SKU-1": quantity}) for quantity in (1, 3, 2)]
    placed = [(await client.wait_until_final(order_id))["created_at"] for order_id in orders]

    async def listed(query: str) -> list[str]:
        return [payment["order_id"] for payment in (await client.get(f"/v1/payments?{query}"))["items"]]

    assert await listed("") == orders[::-1]
    assert await listed("status=declined") == [orders[1]]
    assert await listed("needs_settling=true") == [], "a decline has a reason, and waits for no person"
    assert (await client.request("GET", "/v1/payments?needs_settling=1")).body["code"] == "invalid_query"
    assert await listed("status=captured,declined&limit=2") == orders[:0:-1]
    assert await listed(f"created_after={placed[1]}") in (orders[:0:-1], [orders[2]])
    assert await listed(f"created_before={placed[0]}") in ([], [orders[0]])
    url = server.url_of("")
    code, output = await command(server, "list", "--status", "declined", "--json", "--url", url)
    assert (code, [payment["order_id"] for payment in json.loads(output)]) == (0, [orders[1]])
    assert await command(server, "list", "--needs-settling", "--url", url) == (0, "no payments\n")
    code, output = await command(server, "settle", orders[0], "--outcome", "captured", "--reason", "x", "--url", url)
    assert code == 1
    assert "no_case" in output
    code, output = await command(server, "list", "--url", "http://127.0.0.1:9")
    assert code == 3
    assert "no server answers" in output
    assert (await command(server, "settle", orders[0], "--outcome", "lost", "--reason", "x"))[0] == 2


async def test_a_person_settles_a_payment_of_another_amount(serve: Serve, connect: Connect) -> None:
    """11.01 is charged for 11.00: listed as a case; settled as given back, the order that waits is cancelled."""
    provider = await FaultyStripe().start()
    provider.write_fault = lambda: Fault.WRONG_CHARGE
    try:
        server = serve(PAYMENT_GATEWAY="stripe", STRIPE_API_KEY="sk_test_x", STRIPE_API_BASE=provider.url)
        client = connect(server)
        await client.stock("SKU-1", 100, 1100)
        order_id = await client.place({"SKU-1": 1})
        payment = await eventually(
            lambda: client.get(f"/v1/payments/{order_id}"), lambda payment: payment["needs_settling"] is True
        )
        assert (payment["status"], payment["reason"]) == ("unknown", "wrong_amount")
        assert (await client.get(f"/v1/orders/{order_id}"))["waiting_for"] == "payment"
        url = server.url_of("")
        code, output = await command(server, "list", "--needs-settling", "--status", "unknown", "--url", url)
        assert code == 0
        assert order_id in output
        for query in "needs_settling=true", "needs_settling=true&status=captured,unknown":
            assert [each["order_id"] for each in (await client.get(f"/v1/payments?{query}"))["items"]] == [order_id]
        assert (await client.get("/v1/payments?needs_settling=true&status=declined"))["items"] == []
        settled = ["settle", order_id, "--outcome", "refunded", "--reason", "given back in the dashboard", "--url", url]
        assert await command(server, *settled) == (0, f"{order_id} is refunded\n")
        order = await client.wait_until_final(order_id)
        assert (order["status"], order["reason"]) == ("cancelled", "payment_declined")
        payment = await client.get(f"/v1/payments/{order_id}")
        assert (payment["status"], payment["needs_settling"], payment["refunded"]) == ("refunded", False, money(1100))
        assert payment["settled"]["reason"] == "given back in the dashboard"
        assert (await client.get("/v1/payments?needs_settling=true"))["items"] == []
        assert (await command(server, *settled))[0] == 1, "it is settled already"
    finally:
        await provider.stop()
