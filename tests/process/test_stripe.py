"""The program with the Stripe gateway, against localstripe and against a fake server with configurable faults."""

from __future__ import annotations

import asyncio
import hmac
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from app.gateways.gateway_calls import LANE_CALLS_MAX
from tests.gateways.fault import Fault, FaultyStripe
from tests.gateways.local import API_KEY, LocalStripe
from tests.process.client import Client, Reply, eventually
from tests.process.conftest import Serve
from tests.process.invariants import check_invariants
from tests.process.server import Server, run

SECRET = "whsec_for_tests"
WEBHOOKS = "/v1/payments/webhooks/stripe"
Connect = Callable[[Server], Client]


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[LocalStripe]:
    server = LocalStripe(str(tmp_path / "localstripe.pickle"))
    yield server.start()
    server.kill()


@pytest.fixture
async def faulty() -> AsyncIterator[FaultyStripe]:
    server = await FaultyStripe().start()
    yield server
    await server.stop()


def environment(url: str, **more: str) -> dict[str, str]:
    return {
        "PAYMENT_GATEWAY": "stripe",
        "STRIPE_API_KEY": API_KEY,
        "STRIPE_API_BASE": url,
        "STRIPE_WEBHOOK_SECRET": SECRET,
        **more,
    }


def reconcile(server: Server, *options: str) -> tuple[int, Any]:
    """Run `payments reconcile`; return its exit code and its report."""
    done = run(server.folder, "payments", "reconcile", "--json", *options, **server.settings)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def captured(provider: LocalStripe) -> dict[str, list[int]]:
    """Return the amounts that the provider has captured and not refunded, by order."""
    found: dict[str, list[int]] = {}
    for intent in provider.list_all("/v1/payment_intents"):
        if intent["status"] == "succeeded" and not intent["latest_charge"]["refunded"]:
            found.setdefault(intent["metadata"]["order_id"], []).append(intent["amount"])
    return found


@pytest.mark.slow
async def test_orders_are_charged_declined_and_refunded(serve: Serve, connect: Connect, provider: LocalStripe) -> None:
    """One order is charged, two are declined, a cancelled one is refunded; `reconcile` finds no difference, then two."""
    server = serve(**environment(provider.url))
    client = connect(server)
    await client.stock("SKU-1", 100, 1250)
    paid = await client.place({"SKU-1": 2}, payment_method="pm_card_visa")
    declined = await client.place({"SKU-1": 1}, payment_method="pm_card_chargeCustomerFail")
    unknown = await client.place({"SKU-1": 1}, payment_method="pm_unknown")
    assert (await client.wait_until_final(paid))["status"] == "confirmed"
    for order_id in declined, unknown:
        order = await client.wait_until_final(order_id)
        assert (order["status"], order["reason"]) == ("cancelled", "payment_declined")
    payment = await client.get(f"/v1/payments/{declined}")
    assert (payment["status"], payment["reason"]) == ("declined", "card_declined")
    returned = await client.place({"SKU-1": 3})  # a test API key uses a test card
    assert (await client.wait_until_final(returned))["status"] == "confirmed"
    await client.cancel(returned)
    await client.wait_for_payment(returned, "refunded")
    assert captured(provider) == {paid: [2500]}
    [refund] = provider.list_all("/v1/refunds")
    assert refund["amount"] == 3750
    await check_invariants(client, [paid, declined, unknown, returned], {"SKU-1": 100})
    code, report = await asyncio.to_thread(reconcile, server)
    assert (code, report["differences"]) == (0, [])
    assert report["charges"] == 3
    provider.request("/v1/payment_intents", amount="777", currency="eur", confirm="true", payment_method="pm_card_visa")
    provider.request("/v1/refunds", payment_intent=(await client.get(f"/v1/payments/{paid}"))["reference"], amount="100")
    code, report = await asyncio.to_thread(reconcile, server)
    assert code == 1
    assert sorted(difference["kind"] for difference in report["differences"]) == ["extra", "refunded"]
    output = "\n".join(server.lines) + server.stderr
    assert API_KEY not in output
    assert SECRET not in output
    assert "_secret_" not in output
    provider.kill()
    assert run(server.folder, "payments", "reconcile", **server.settings).returncode == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "settings", "code"),
    [
        (["--since", "yesterday"], {}, 2),
        (["--since", "2026-01-02", "--until", "2026-01-01"], {}, 2),
        ([], {"PAYMENT_GATEWAY": "simulated"}, 2),
        (["--help"], {}, 0),
    ],
)
def test_reconcile_reports_usage_errors(
    tmp_path: Path, arguments: list[str], settings: dict[str, str], code: int
) -> None:
    """With exit code 2 and without a traceback."""
    done = run(tmp_path, "payments", "reconcile", *arguments, **(environment("http://127.0.0.1:1") | settings))
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.slow
async def test_webhooks_need_a_valid_signature(serve: Serve, connect: Connect, provider: LocalStripe) -> None:
    """The route needs no API key. A valid webhook is handled once; one without an order is another shop's, and ignored."""
    server = serve(**environment(provider.url))
    client = connect(server)
    provider.request("/_config/webhooks/ours", url=server.url + WEBHOOKS, secret=SECRET)
    await client.stock("SKU-1", 100)
    order_id = await client.place({"SKU-1": 1})
    await client.wait_until_final(order_id)
    provider.request("/v1/payment_intents", amount="777", currency="eur", confirm="true", payment_method="pm_card_visa")

    async def metrics() -> str:
        return (await client.request("GET", "/metrics")).text

    for outcome in "ignored", "handled":
        wanted = f'subject="stripe.payment_intent.succeeded",outcome="{outcome}"'
        await eventually(metrics, lambda found, wanted=wanted: wanted in found)  # type: ignore[misc]
    assert await client.list_all("/v1/dead-letters") == []

    async def send(body: bytes, **changes: Any) -> Reply:
        headers = {"Stripe-Signature": signed(body), "Content-Type": "application/json; charset=utf-8"}
        return await client.request("POST", WEBHOOKS, headers=headers | changes, data=body)

    reference = (await client.get(f"/v1/payments/{order_id}"))["reference"]
    intent = provider.request(f"/v1/payment_intents/{reference}")
    event = {"object": "event", "id": "evt_1", "type": "payment_intent.succeeded", "data": {"object": intent}}
    body = json.dumps(event).encode()
    responses = [await send(body), await send(body)]
    assert [(response.status, response.body["outcome"]) for response in responses] == [
        (200, "handled"),
        (200, "repeated"),
    ]
    for wrong in (
        await send(body, **{"Stripe-Signature": "t=1,v1=00"}),
        await send(body + b" ", **{"Stripe-Signature": signed(body)}),
        await client.request("POST", WEBHOOKS, data=body),
    ):
        assert (wrong.status, wrong.body["code"]) == (400, "invalid_signature")
        assert wrong.headers["Content-Type"].startswith("application/problem+json")
    large = json.dumps({**event, "id": "evt_large", "padding": "x" * 200_000}).encode()
    assert (await send(large)).status == 200
    too_large = json.dumps({**event, "id": "evt_larger", "padding": "x" * 300_000}).encode()
    assert (await send(too_large)).status == 413
    assert (await send(b"[]")).body["code"] == "invalid_body"
    document = await client.get("/openapi.json")
    assert document["paths"][WEBHOOKS]["post"]["security"] == []


def signed(body: bytes) -> str:
    now = int(time.time())
    return f"t={now},v1={hmac.new(SECRET.encode(), b'%d.' % now + body, sha256).hexdigest()}"


@pytest.mark.slow
async def test_without_a_webhook_secret_every_webhook_is_rejected(client: Client) -> None:
    """With 503 and a Retry-After, so that Stripe repeats it; the code names the reason."""
    reply = await client.request("POST", WEBHOOKS, {"id": "evt_1"})
    assert (reply.status, reply.body["code"]) == (503, "webhooks_not_configured")
    assert reply.headers["Retry-After"]


@pytest.mark.night
async def test_orders_wait_while_the_provider_is_killed_and_restarted(
    serve: Serve, connect: Connect, provider: LocalStripe
) -> None:
    """The orders show that they wait; orders cancelled meanwhile are never charged; finally `reconcile` agrees."""
    server = serve(**environment(provider.url))
    client = connect(server)
    await client.stock("SKU-1", 1_000, 500)
    orders = await asyncio.gather(*(client.place({"SKU-1": 1}) for _ in range(60)))
    await asyncio.to_thread(provider.stop)
    orders += await asyncio.gather(*(client.place({"SKU-1": 1}) for _ in range(60)))

    async def unfinished() -> list[Any]:
        return [order for order in await client.list_all("/v1/orders") if order["status"] != "confirmed"]

    waiting = await eventually(
        unfinished, lambda found: bool(found) and all(order.get("waiting_for") == "payment" for order in found), 30
    )
    assert {order["status"] for order in waiting} == {"reserved"}
    assert 'circuit_breaker_state{gateway="stripe"} 2' in (await client.request("GET", "/metrics")).text
    cancelled = [order["order_id"] for order in waiting[:5]]
    for order_id in cancelled:
        await client.cancel(order_id)
    await asyncio.to_thread(provider.start)
    await check_invariants(client, orders, {"SKU-1": 1_000}, seconds=60)
    for order_id in orders:
        assert (await client.get(f"/v1/orders/{order_id}"))["status"] == (
            "cancelled" if order_id in cancelled else "confirmed"
        )
    assert captured(provider) == {order_id: [500] for order_id in orders if order_id not in cancelled}
    code, report = await asyncio.to_thread(reconcile, server)
    assert (code, report["differences"]) == (0, [])


@pytest.mark.slow
async def test_an_order_that_times_out_without_the_provider_is_cancelled(serve: Serve, connect: Connect) -> None:
    """The reason is payment_unavailable, and its stock is released."""
    client = connect(serve(**environment("http://127.0.0.1:1", ORDER_TIMEOUT_S="3")))
    await client.stock("SKU-1", 10)
    order = await client.wait_until_final(await client.place({"SKU-1": 4}))
    assert (order["status"], order["reason"]) == ("cancelled", "payment_unavailable")

    async def product() -> Any:
        return await client.get("/v1/inventory/SKU-1")

    await eventually(product, lambda found: found["available"] == 10)


@pytest.mark.slow
async def test_a_hanging_provider_does_not_delay_orders_without_a_charge(
    serve: Serve, connect: Connect, faulty: FaultyStripe
) -> None:
    """While every call hangs, an order for a product without stock is cancelled at once."""
    faulty.write_fault = lambda: Fault.HANG
    client = connect(serve(**environment(faulty.url)))
    await client.stock("SKU-1", 1_000)
    await client.stock("SKU-2", 0)
    await asyncio.gather(*(client.place({"SKU-1": 1}) for _ in range(120)))

    async def calls() -> int:
        return len(faulty.calls)

    await eventually(calls, lambda count: count >= LANE_CALLS_MAX)
    began = time.monotonic()
    order = await client.wait_until_final(await client.place({"SKU-2": 1}))
    assert order["reason"] == "insufficient_stock"
    assert time.monotonic() - began < 15


@pytest.mark.slow
async def test_a_kill_between_the_charge_and_its_commit_charges_once(
    serve: Serve, connect: Connect, faulty: FaultyStripe
) -> None:
    """The next start looks the charge up before it charges again; this provider ignores idempotency keys."""
    faulty.write_fault = lambda: Fault.CHARGE_HANG
    server = serve(**environment(faulty.url))
    client = connect(server)
    await client.stock("SKU-1", 100, 500)
    orders = await asyncio.gather(*(client.place({"SKU-1": 1}) for _ in range(40)))

    async def charged() -> int:
        return len(faulty.intents)

    await eventually(charged, lambda count: count == 40)
    server.kill()
    faulty.write_fault = lambda: Fault.NONE
    server.start()
    await check_invariants(client, orders, {"SKU-1": 100}, seconds=60)
    assert faulty.captured() == {order_id: [500] for order_id in orders}


@pytest.mark.night
async def test_hundreds_of_orders_with_a_failing_provider_are_charged_once(
    serve: Serve, connect: Connect, faulty: FaultyStripe
) -> None:
    """30 % time-outs after the charge, 20 % 5xx, 5 % unreadable responses: every order is confirmed and charged once."""
    rng = random.Random(5)

    def next_fault() -> Fault:
        share = rng.random()
        if share < 0.30:
            return Fault.CHARGE_HANG
        if share < 0.50:
            return rng.choice([Fault.CHARGE_500, Fault.ERROR_500])
        return rng.choice([Fault.CHARGE_HTML, Fault.CHARGE_TRUNCATED]) if share < 0.55 else Fault.NONE

    faulty.write_fault = next_fault
    server = serve(**environment(faulty.url))
    client = connect(server)
    await client.stock("SKU-1", 1_000, 500)
    orders = [await client.place({"SKU-1": 1}) for _ in range(300)]
    found = await check_invariants(client, orders, {"SKU-1": 1_000}, seconds=200)
    assert {order["status"] for order in found} == {"confirmed"}
    assert faulty.captured() == {order_id: [500] for order_id in orders}
    code, report = await asyncio.to_thread(reconcile, server)
    assert (code, report["differences"]) == (0, [])
