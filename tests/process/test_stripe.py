"""The program with Stripe for a provider: localstripe from outside, and a server that misbehaves to order."""

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
from tests.process.invariants import check_world
from tests.process.server import Server, run

SECRET = "whsec_of_nobody"
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


def reconcile(server: Server) -> tuple[int, Any]:
    """Run the command; return its exit code and what it reports."""
    done = run(server.folder, "payments", "reconcile", "--json", **server.settings)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def captured(provider: LocalStripe) -> dict[str, list[int]]:
    """Return the amounts that the provider has taken and not given back, by order."""
    found: dict[str, list[int]] = {}
    for intent in provider.list_all("/v1/payment_intents"):
        if intent["status"] == "succeeded" and not intent["latest_charge"]["refunded"]:
            found.setdefault(intent["metadata"]["order_id"], []).append(intent["amount"])
    return found


async def test_pay_decline_and_refund(serve: Serve, connect: Connect, provider: LocalStripe) -> None:
    """An order is paid, one with a bad card is not, one that is cancelled gets its money back; the books agree."""
    server = serve(**environment(provider.url))
    client = connect(server)
    await client.stock("SKU-1", 100, 1250)
    paid = await client.place({"SKU-1": 2}, payment_method="pm_card_visa")
    declined = await client.place({"SKU-1": 1}, payment_method="pm_card_chargeCustomerFail")
    nonsense = await client.place({"SKU-1": 1}, payment_method="pm_nobody_has")
    assert (await client.followed(paid))["status"] == "confirmed"
    for order_id in declined, nonsense:
        order = await client.followed(order_id)
        assert (order["status"], order["reason"]) == ("cancelled", "payment_declined")
    payment = await client.get(f"/v1/payments/{declined}")
    assert (payment["status"], payment["reason"]) == ("declined", "card_declined")
    returned = await client.place({"SKU-1": 3})  # a test key pays with a test card
    assert (await client.followed(returned))["status"] == "confirmed"
    await client.cancel(returned)
    await client.payment_once(returned, "refunded")
    assert captured(provider) == {paid: [2500]}
    [refund] = provider.list_all("/v1/refunds")
    assert refund["amount"] == 3750
    await check_world(client, [paid, declined, nonsense, returned], {"SKU-1": 100})
    code, report = await asyncio.to_thread(reconcile, server)
    assert (code, report["differences"]) == (0, [])
    assert report["charges"] == 3
    provider.request("/v1/payment_intents", amount="777", currency="eur", confirm="true", payment_method="pm_card_visa")
    provider.request("/v1/refunds", payment_intent=(await client.get(f"/v1/payments/{paid}"))["reference"], amount="100")
    code, report = await asyncio.to_thread(reconcile, server)
    assert code == 1
    assert sorted(difference["kind"] for difference in report["differences"]) == ["extra", "refunded"]
    said = "\n".join(server.lines) + server.stderr
    assert API_KEY not in said
    assert SECRET not in said
    assert "_secret_" not in said
    provider.kill()
    assert run(server.folder, "payments", "reconcile", **server.settings).returncode == 3


@pytest.mark.parametrize(
    ("arguments", "settings", "code"),
    [
        (["--since", "yesterday"], {}, 2),
        (["--since", "2026-01-02", "--until", "2026-01-01"], {}, 2),
        ([], {"PAYMENT_GATEWAY": "simulated"}, 2),
        (["--help"], {}, 0),
    ],
)
def test_reconcile_says_what_it_cannot_do(tmp_path: Path, arguments: list[str], settings: dict[str, str], code: int) -> None:
    """One line, and the exit code of a usage error."""
    done = run(tmp_path, "payments", "reconcile", *arguments, **(environment("http://127.0.0.1:1") | settings))
    assert done.returncode == code
    assert "Traceback" not in done.stderr


async def test_webhooks_with_right_and_wrong_signatures(serve: Serve, connect: Connect, provider: LocalStripe) -> None:
    """No API key, but a signature; the provider's own are taken, and what is about nobody is put aside."""
    server = serve(**environment(provider.url))
    client = connect(server)
    provider.request("/_config/webhooks/ours", url=server.url + WEBHOOKS, secret=SECRET)
    await client.stock("SKU-1", 100)
    order_id = await client.place({"SKU-1": 1})
    await client.followed(order_id)
    provider.request("/v1/payment_intents", amount="777", currency="eur", confirm="true", payment_method="pm_card_visa")

    async def letters() -> Any:
        return await client.everything("/v1/dead-letters")

    [dead_letter] = await eventually(letters, lambda found: len(found) > 0)
    assert (dead_letter["consumer"], dead_letter["error"]) == ("payments-webhooks", "unknown_intent")
    metrics = (await client.ask("GET", "/metrics")).text
    assert 'subject="stripe.payment_intent.succeeded",outcome="handled"' in metrics

    async def send(body: bytes, **changes: Any) -> Reply:
        headers = {"Stripe-Signature": signed(body), "Content-Type": "application/json; charset=utf-8"}
        return await client.ask("POST", WEBHOOKS, headers=headers | changes, data=body)

    reference = (await client.get(f"/v1/payments/{order_id}"))["reference"]
    intent = provider.request(f"/v1/payment_intents/{reference}")
    event = {"object": "event", "id": "evt_mine", "type": "payment_intent.succeeded", "data": {"object": intent}}
    body = json.dumps(event).encode()
    answers = [await send(body), await send(body)]
    assert [(answer.status, answer.body["outcome"]) for answer in answers] == [(200, "handled"), (200, "repeated")]
    for wrong in (
        await send(body, **{"Stripe-Signature": "t=1,v1=00"}),
        await send(body + b" ", **{"Stripe-Signature": signed(body)}),
        await client.ask("POST", WEBHOOKS, data=body),
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


async def test_without_a_secret_no_webhook_is_believed(client: Client) -> None:
    """Stripe is told to come again, and an operator sees why."""
    reply = await client.ask("POST", WEBHOOKS, {"id": "evt_1"})
    assert (reply.status, reply.body["code"]) == (503, "webhooks_not_configured")
    assert reply.headers["Retry-After"]


@pytest.mark.slow
async def test_a_provider_that_is_killed_under_load_and_brought_back(
    serve: Serve, connect: Connect, provider: LocalStripe
) -> None:
    """Orders wait and say so, what is cancelled meanwhile is never charged, and in the end both lists agree."""
    server = serve(**environment(provider.url))
    client = connect(server)
    await client.stock("SKU-1", 1_000, 500)
    orders = await asyncio.gather(*(client.place({"SKU-1": 1}) for _ in range(60)))
    await asyncio.to_thread(provider.stop)
    orders += await asyncio.gather(*(client.place({"SKU-1": 1}) for _ in range(60)))

    async def unfinished() -> list[Any]:
        return [order for order in await client.everything("/v1/orders") if order["status"] != "confirmed"]

    waiting = await eventually(
        unfinished, lambda found: bool(found) and all(order.get("waiting_for") == "payment" for order in found), 30
    )
    assert {order["status"] for order in waiting} == {"reserved"}
    assert 'circuit_breaker_state{gateway="stripe"} 2' in (await client.ask("GET", "/metrics")).text
    off = [order["order_id"] for order in waiting[:5]]
    for order_id in off:
        await client.cancel(order_id)
    await asyncio.to_thread(provider.start)
    await check_world(client, orders, {"SKU-1": 1_000}, seconds=60)
    for order_id in orders:
        assert (await client.get(f"/v1/orders/{order_id}"))["status"] == ("cancelled" if order_id in off else "confirmed")
    assert captured(provider) == {order_id: [500] for order_id in orders if order_id not in off}
    code, report = await asyncio.to_thread(reconcile, server)
    assert (code, report["differences"]) == (0, [])


async def test_an_order_whose_time_is_up_while_the_provider_is_away(serve: Serve, connect: Connect) -> None:
    """It is cancelled, for want of a payment, and what it held goes back to the shelf."""
    client = connect(serve(**environment("http://127.0.0.1:1", ORDER_TIMEOUT_S="3")))
    await client.stock("SKU-1", 10)
    order = await client.followed(await client.place({"SKU-1": 4}))
    assert (order["status"], order["reason"]) == ("cancelled", "payment_unavailable")

    async def product() -> Any:
        return await client.get("/v1/inventory/SKU-1")

    await eventually(product, lambda found: found["available"] == 10)


@pytest.mark.slow
async def test_a_provider_that_hangs_holds_up_nobody_who_needs_it_not(
    serve: Serve, connect: Connect, faulty: FaultyStripe
) -> None:
    """With every call to it stuck, an order for what is not there ends at once."""
    faulty.write_fault = lambda: Fault.HANG
    client = connect(serve(**environment(faulty.url)))
    await client.stock("SKU-1", 1_000)
    await client.stock("SKU-2", 0)
    await asyncio.gather(*(client.place({"SKU-1": 1}) for _ in range(120)))

    async def calls() -> int:
        return len(faulty.calls)

    await eventually(calls, lambda count: count >= LANE_CALLS_MAX)
    began = time.monotonic()
    order = await client.followed(await client.place({"SKU-2": 1}))
    assert order["reason"] == "insufficient_stock"
    assert time.monotonic() - began < 6


@pytest.mark.slow
async def test_killed_between_the_charge_and_its_record(serve: Serve, connect: Connect, faulty: FaultyStripe) -> None:
    """The next start looks before it charges again: this provider knows no repeated key."""
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
    await check_world(client, orders, {"SKU-1": 100}, seconds=60)
    assert faulty.captured() == {order_id: [500] for order_id in orders}


@pytest.mark.slow
async def test_hundreds_of_orders_in_bad_weather(serve: Serve, connect: Connect, faulty: FaultyStripe) -> None:
    """30 % time-outs after the charge, 20 % 5xx, 5 % nonsense: every order is confirmed and charged once."""
    rng = random.Random(5)

    def weather() -> Fault:
        share = rng.random()
        if share < 0.30:
            return Fault.CHARGE_HANG
        if share < 0.50:
            return rng.choice([Fault.CHARGE_500, Fault.ERROR_500])
        return rng.choice([Fault.CHARGE_HTML, Fault.CHARGE_TRUNCATED]) if share < 0.55 else Fault.NONE

    faulty.write_fault = weather
    server = serve(**environment(faulty.url))
    client = connect(server)
    await client.stock("SKU-1", 1_000, 500)
    orders = [await client.place({"SKU-1": 1}) for _ in range(300)]
    found = await check_world(client, orders, {"SKU-1": 1_000}, seconds=200)
    assert {order["status"] for order in found} == {"confirmed"}
    assert faulty.captured() == {order_id: [500] for order_id in orders}
    code, report = await asyncio.to_thread(reconcile, server)
    assert (code, report["differences"]) == (0, [])
