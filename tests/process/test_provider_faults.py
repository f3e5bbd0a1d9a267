"""The program with a provider that behaves like Stripe, while its account, key or permissions are wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.gateways.fault import Fault, FaultyStripe
from tests.gateways.local import API_KEY
from tests.process.client import Client, eventually
from tests.process.conftest import Serve
from tests.process.server import Server

pytestmark = pytest.mark.slow

Connect = Callable[[Server], Client]
SECRET = "whsec_test"


@pytest.fixture
async def stripe() -> AsyncIterator[FaultyStripe]:
    server = await FaultyStripe(webhook_secret=SECRET).start()
    yield server
    await server.stop()


def environment(stripe: FaultyStripe, **more: str) -> dict[str, str]:
    return {
        "PAYMENT_GATEWAY": "stripe",
        "STRIPE_API_KEY": API_KEY,
        "STRIPE_API_BASE": stripe.url,
        "STRIPE_WEBHOOK_SECRET": SECRET,
        **more,
    }


def errors(server: Server) -> list[dict[str, Any]]:
    """Return the lines of the log at ERROR."""
    lines = [json.loads(line) for line in server.lines if line.startswith("{")]
    return [line for line in lines if line.get("level") == "ERROR"]


async def until_check(client: Client, name: str, value: str | None) -> dict[str, Any]:
    """Wait until readiness has *value* for the check *name*."""

    async def ready() -> Any:
        return await client.get("/readyz")

    found: dict[str, Any] = await eventually(ready, lambda reply: reply["checks"].get(name) == value, 20)
    return found


async def test_refunds_without_permission_stop_no_sale(serve: Serve, connect: Connect, stripe: FaultyStripe) -> None:
    """Paid orders are cancelled; their refunds wait, new orders are paid, and the fault is reported once."""
    server = serve(**environment(stripe))
    client = connect(server)
    await client.stock("SKU-1", 100, 500)
    paid = [await client.place({"SKU-1": 1}) for _ in range(6)]
    for order_id in paid:
        await client.wait_until_final(order_id)
    stripe.account.denied |= {"refund_write", "refund_read"}
    for order_id in paid:
        await client.cancel(order_id)
    assert (await until_check(client, "gateway:refund", "misconfigured: permission_missing"))["status"] == "degraded"
    for _ in range(6):
        assert (await client.wait_until_final(await client.place({"SKU-1": 1})))["status"] == "confirmed"
    [error] = errors(server)
    assert (error["operation"], error["gateway"]) == ("refund", "stripe")
    assert error["request_id"].startswith("req_")
    stripe.account.denied.clear()
    for order_id in paid:
        await client.wait_for_payment(order_id, "refunded")
    assert (await until_check(client, "gateway:refund", None))["status"] == "ready"
    assert stripe.refunded() == {order_id: [500] for order_id in paid}


async def test_charges_without_permission_stop_no_refund(serve: Serve, connect: Connect, stripe: FaultyStripe) -> None:
    """The breaker of charges is open, with orders that wait for it; a paid order is cancelled and refunded meanwhile."""
    client = connect(serve(**environment(stripe)))
    await client.stock("SKU-1", 100, 500)
    paid = await client.place({"SKU-1": 1})
    await client.wait_until_final(paid)
    stripe.account.denied.add("payment_intent_write")
    waiting = [await client.place({"SKU-1": 1}) for _ in range(30)]

    async def metrics() -> str:
        return (await client.request("GET", "/metrics")).text

    await eventually(metrics, lambda text: 'circuit_breaker_state{gateway="stripe"} 2' in text, 20)
    await client.cancel(paid)
    await client.wait_for_payment(paid, "refunded")
    stripe.account.denied.clear()
    for order_id in waiting:
        assert (await client.wait_until_final(order_id))["status"] == "confirmed"


@pytest.mark.parametrize("kind", ["expired", "denied", "inactive"])
async def test_an_order_waits_while_the_account_cannot_charge(
    serve: Serve, connect: Connect, stripe: FaultyStripe, kind: str
) -> None:
    """In a quiet shop, too: one order is enough for an ERROR and for readiness. The order shows what it waits for."""
    if kind == "expired":
        stripe.account.expired_keys.add(API_KEY)
    if kind == "denied":
        stripe.account.denied.add("payment_intent_write")
    stripe.account.can_charge = kind != "inactive"
    server = serve(**environment(stripe))
    client = connect(server)
    await client.stock("SKU-1", 100, 500)
    order_id = await client.place({"SKU-1": 1})
    codes = {"expired": "api_key_expired", "denied": "permission_missing", "inactive": "invalid_request_error"}
    code = codes[kind]
    assert (await until_check(client, "gateway:charge", f"misconfigured: {code}"))["status"] == "degraded"

    async def order() -> Any:
        return await client.get(f"/v1/orders/{order_id}")

    waiting = await eventually(order, lambda found: found.get("waiting_for") == "payment", 10)
    assert waiting["status"] == "reserved"
    calls = len(stripe.calls)

    async def repeated() -> bool:
        return len(stripe.calls) >= calls + 3

    await eventually(repeated, bool, 20)
    [error] = errors(server)
    assert (error["operation"], error["code"]) == ("charge", code)
    assert API_KEY not in "\n".join(server.lines)
    stripe.account.expired_keys.clear()
    stripe.account.denied.clear()
    stripe.account.can_charge = True
    assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    assert (await until_check(client, "gateway:charge", None))["status"] == "ready"


async def test_an_amount_that_stripe_refuses_holds_only_its_own_order(
    serve: Serve, connect: Connect, stripe: FaultyStripe
) -> None:
    """A total below Stripe's minimum is reported once; others are paid meanwhile."""
    server = serve(**environment(stripe, ORDER_TIMEOUT_S="8"))
    client = connect(server)
    await client.stock("SKU-1", 100, 500)
    await client.stock("SKU-2", 100, 1)
    small = [await client.place({"SKU-2": 1}) for _ in range(3)]
    await until_check(client, "gateway:charge", "misconfigured: amount_too_small (amount)")
    for _ in range(10):
        assert (await client.wait_until_final(await client.place({"SKU-1": 1})))["status"] == "confirmed"
    assert [(error["code"], error["param"]) for error in errors(server)] == [("amount_too_small", "amount")]
    for order_id in small:
        assert (await client.wait_until_final(order_id))["reason"] == "payment_unavailable"


async def test_one_429_does_not_stop_the_others(serve: Serve, connect: Connect, stripe: FaultyStripe) -> None:
    """Also with a Retry-After: the calls become fewer, and the breaker stays closed."""
    faults = iter([Fault.NONE] * 20 + [Fault.RATE_LIMITED])
    stripe.write_fault = lambda: next(faults, Fault.NONE)
    client = connect(serve(**environment(stripe)))
    await client.stock("SKU-1", 100, 500)
    orders = await asyncio.gather(*(client.place({"SKU-1": 1}) for _ in range(40)))

    async def confirmed() -> int:
        return len([order for order in await client.list_all("/v1/orders") if order["status"] == "confirmed"])

    await eventually(confirmed, lambda count: count >= len(orders) - 1, 20)
    assert 'circuit_breaker_state{gateway="stripe"} 0' in (await client.request("GET", "/metrics")).text


async def test_a_crash_with_many_recent_charges_stops_no_sale(
    serve: Serve, connect: Connect, stripe: FaultyStripe
) -> None:
    """What was asked for when the process died is asked for again under its key; the provider's long list is read once at most."""
    stripe.fill(5_000)
    stripe.latency_seconds = 0.3
    server = serve(**environment(stripe))
    client = connect(server)
    await client.stock("SKU-1", 1_000, 500)
    orders = await asyncio.gather(*(client.place({"SKU-1": 1}) for _ in range(120)))

    async def asked() -> int:
        return len([call for call in stripe.calls if call[0] == "charge"])

    await eventually(asked, lambda count: count >= 60, 10)
    server.kill()
    stripe.calls.clear()
    server.start()
    orders += await asyncio.gather(*(client.place({"SKU-1": 1}) for _ in range(30)))
    for order_id in orders:
        assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    captured = stripe.captured()
    captured.pop("")
    assert captured == {order_id: [500] for order_id in orders}
    # Where the machine is slow, one order may need a look-up; its pages of 100 serve all others.
    assert stripe.calls.count(("list", "")) <= 55
    assert stripe.replayed > 0


async def test_refunds_that_fail_and_disputes_are_known_from_webhooks(
    serve: Serve, connect: Connect, stripe: FaultyStripe
) -> None:
    """Two endpoints with a secret each; another shop's events on the same account are counted and ignored."""
    server = serve(**environment(stripe, STRIPE_WEBHOOK_SECRET=f"whsec_old, {SECRET}"))
    client = connect(server)
    stripe.webhook_url = f"{server.url}/v1/payments/webhooks/stripe"
    stripe.refund_status = lambda: "pending"
    await client.stock("SKU-1", 100, 500)
    refunded, disputed = [await client.place({"SKU-1": 1}) for _ in range(2)]
    for order_id in refunded, disputed:
        assert (await client.wait_until_final(order_id))["status"] == "confirmed"
    await client.cancel(refunded)

    async def payment_of(order_id: str) -> Any:
        return await client.get(f"/v1/payments/{order_id}")

    await eventually(lambda: payment_of(refunded), lambda found: found["refund_status"] == "pending", 20)
    stripe.refund_status = lambda: "succeeded"
    stripe.settle_refund(next(iter(stripe.refunds)), "failed")
    await client.wait_for_payment(refunded, "refunded")
    assert sum(stripe.refunded()[refunded]) == 500
    intent = (await payment_of(disputed))["reference"]
    dispute = stripe.open_dispute(intent)
    await eventually(lambda: payment_of(disputed), lambda found: found["dispute"] == "open", 20)
    stripe.close_dispute(dispute["id"], "lost")
    await eventually(lambda: payment_of(disputed), lambda found: found["dispute"] == "lost", 20)
    stripe.fill(1)
    stripe.emit("payment_intent.succeeded", list(stripe.intents.values())[-1])

    async def ignored() -> str:
        return (await client.request("GET", "/metrics")).text

    await eventually(ignored, lambda text: 'subject="stripe.payment_intent.succeeded",outcome="ignored"} 1' in text, 20)
    assert await client.list_all("/v1/dead-letters") == []
