"""
What Stripe sends and answers in public reports of other people's integrations, whole, against the running program.

Each ends in the right state of the payment, in a counted event that changes nothing, or in a case for a person.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from tests.gateways.fault import Fault, FaultyStripe
from tests.gateways.local import API_KEY
from tests.gateways.stripe_payloads import charge_object, dispute_object, event_object, intent_object, refund_object
from tests.process.client import Client, eventually
from tests.process.conftest import Serve
from tests.process.server import Server

pytestmark = pytest.mark.slow

Connect = Callable[[Server], Client]
WEBHOOKS = "/v1/payments/webhooks/stripe"
PRICE = 1250

IGNORED_TYPES = [
    *("charge.captured", "charge.expired", "charge.failed", "charge.pending", "charge.succeeded", "charge.updated"),
    *("payment_intent.amount_capturable_updated", "payment_intent.canceled", "payment_intent.created"),
    *("payment_intent.partially_funded", "payment_intent.processing", "payment_intent.requires_action"),
    *("radar.early_fraud_warning.created", "review.opened", "balance.available", "payout.failed", "account.updated"),
]


@pytest.fixture
async def stripe() -> AsyncIterator[FaultyStripe]:
    server = await FaultyStripe().start()
    yield server
    await server.stop()


class Shop:
    """A server with paid orders, and the webhooks that Stripe sends about them."""

    def __init__(self, client: Client, stripe: FaultyStripe) -> None:
        self.client = client
        self.stripe = stripe
        self.sent = 0

    async def paid(self) -> tuple[str, dict[str, Any]]:
        """Return a new order that is paid, and its charge."""
        order_id = await self.client.place({"SKU-1": 1})
        assert (await self.client.wait_until_final(order_id))["status"] == "confirmed"
        [charge] = [each for each in self.stripe.charges.values() if each["metadata"].get("order_id") == order_id]
        return order_id, charge

    async def send(self, type: str, value: dict[str, Any], id: str | None = None, **changes: Any) -> str:
        """Send an event; return the outcome."""
        self.sent += 1
        body = orjson.dumps(event_object(id or f"evt_{self.sent}x", type, value, int(self.stripe.wall_seconds()), **changes))
        return await self.send_raw(body)

    async def send_raw(self, body: bytes) -> str:
        reply = await self.client.request("POST", WEBHOOKS, headers={"Stripe-Signature": self.stripe.signature(body)}, data=body)
        assert reply.status == 200, reply.text
        outcome: str = reply.body["outcome"]
        return outcome

    async def payment(self, order_id: str, *names: str) -> list[Any]:
        found = await self.client.get(f"/v1/payments/{order_id}")
        assert 0 <= found["refunded"]["amount"] <= PRICE
        return [found[name]["amount"] if name == "refunded" else found[name] for name in names]

    def refund(self, charge: dict[str, Any], amount: int, status: str, id: str, **changes: Any) -> dict[str, Any]:
        return refund_object(id, charge, amount, status, int(self.stripe.wall_seconds()), **changes)

    def dispute(self, charge: dict[str, Any], status: str, **changes: Any) -> dict[str, Any]:
        return dispute_object(f"dp_{charge['id']}", charge, status, int(self.stripe.wall_seconds()), **changes)


@pytest.fixture
async def shop(serve: Serve, connect: Connect, stripe: FaultyStripe) -> Shop:
    server = serve(
        PAYMENT_GATEWAY="stripe", STRIPE_API_KEY=API_KEY, STRIPE_API_BASE=stripe.url, STRIPE_WEBHOOK_SECRET=stripe.webhook_secret
    )
    client = connect(server)
    await client.stock("SKU-1", 1000, PRICE)
    return Shop(client, stripe)


async def test_refunds_that_are_reported_in_parts_twice_late_and_by_their_charge_alone(shop: Shop) -> None:
    """Each refund counts once, whatever the order of its events, and no longer once it has failed."""
    order_id, charge = await shop.paid()
    # The total comes first, and the refund that explains it is still pending.
    assert await shop.send("charge.refunded", charge | {"amount_refunded": 400}) == "handled"
    assert await shop.send("refund.created", shop.refund(charge, 400, "pending", "re_a1")) == "handled"
    assert await shop.payment(order_id, "refunded", "refund_status") == [0, "pending"]
    assert await shop.send("refund.updated", shop.refund(charge, 400, "succeeded", "re_a1"), "evt_a") == "handled"
    assert await shop.payment(order_id, "refunded", "refund_status") == [400, "succeeded"]
    # Another one, whose update overtakes its creation; then old events are sent again, under their own and under new ids.
    assert await shop.send("refund.updated", shop.refund(charge, 300, "succeeded", "re_a2")) == "handled"
    assert await shop.send("refund.created", shop.refund(charge, 300, "pending", "re_a2")) == "handled"
    assert await shop.send("charge.refunded", charge | {"amount_refunded": 700, "refunds": {"data": []}}) == "handled"
    assert await shop.send("refund.updated", shop.refund(charge, 400, "succeeded", "re_a1"), "evt_a") == "repeated"
    assert await shop.send("charge.refund.updated", shop.refund(charge, 400, "succeeded", "re_a1")) == "handled"
    assert await shop.payment(order_id, "refunded") == [700]
    # An old version of the API names the charge only.
    failed = shop.refund(charge, 400, "failed", "re_a1", failure_reason="expired_or_canceled_card", payment_intent=None)
    assert await shop.send("charge.refund.updated", failed, api_version="2017-08-15") == "handled"
    assert await shop.payment(order_id, "status", "refunded") == ["captured", 300]
    assert await shop.client.list_all("/v1/dead-letters") == []


async def test_disputes_of_every_kind(shop: Shop) -> None:
    """The status counts and not the type of the event; amount and currency may differ from the charge's."""
    order_id, charge = await shop.paid()
    old = shop.dispute(charge, "needs_response", payment_intent=None, amount=PRICE + 60)
    assert await shop.send("charge.dispute.funds_withdrawn", old, api_version="2017-08-15") == "handled"
    assert await shop.send("charge.dispute.created", shop.dispute(charge, "needs_response", amount=PRICE + 60)) == "handled"
    assert await shop.payment(order_id, "dispute", "needs_settling") == ["open", False]
    # Funds are also reinstated in part although the dispute was lost.
    assert await shop.send("charge.dispute.funds_reinstated", shop.dispute(charge, "lost")) == "handled"
    assert await shop.send("charge.dispute.updated", shop.dispute(charge, "under_review")) == "handled"
    assert await shop.payment(order_id, "dispute", "refunded") == ["lost", 0]
    await shop.client.cancel(order_id)

    async def needs_settling() -> bool:
        return bool((await shop.payment(order_id, "needs_settling"))[0])

    await eventually(needs_settling, bool)
    inquiry_order, charge = await shop.paid()
    assert await shop.send("charge.dispute.created", shop.dispute(charge, "warning_needs_response")) == "handled"
    assert await shop.send("charge.dispute.closed", shop.dispute(charge, "warning_closed")) == "handled"
    assert await shop.payment(inquiry_order, "dispute") == ["won"]
    foreign_order, charge = await shop.paid()
    assert await shop.send("charge.dispute.created", shop.dispute(charge, "needs_response", currency="jpy", amount=210_000)) == "handled"
    assert await shop.payment(foreign_order, "dispute") == ["open"]
    assert [call for call in shop.stripe.calls if call[0] == "refund"] == []
    assert await shop.client.list_all("/v1/dead-letters") == []


async def test_what_changes_nothing_is_counted(shop: Shop) -> None:
    """Other types, events about an earlier attempt, other accounts, and Stripe's newer kind of events."""
    order_id, charge = await shop.paid()
    intent = shop.stripe.intents[charge["payment_intent"]]
    for type in IGNORED_TYPES:
        assert await shop.send(type, intent) == "ignored", type
    error = {"type": "card_error", "code": "card_declined", "decline_code": "insufficient_funds"}
    failed = intent | {"id": "pi_earlier", "status": "requires_payment_method", "amount_received": 0, "last_payment_error": error}
    assert await shop.send("payment_intent.payment_failed", failed) == "handled"
    for number, metadata in enumerate(({}, {"order_id": "1001"}, {"order_id": order_id[::-1]}, {"order_id": 7})):
        other = intent_object(f"pi_other{number}", 999, "usd", "succeeded", 1, metadata=metadata)
        assert await shop.send("payment_intent.succeeded", other, account="acct_1Connected") == "ignored"
        shop.stripe.intents[other["id"]] = other
        other_charge = charge_object(f"ch_other{number}", other, "succeeded")
        assert await shop.send("charge.dispute.created", shop.dispute(other_charge, "needs_response")) == "ignored"
        by_hand = other_charge | {"payment_intent": None, "amount_refunded": 999}
        assert await shop.send("charge.refunded", by_hand) == "ignored"
    unknown = charge_object("ch_unknown", other, "succeeded", payment_intent="pi_unknown")
    assert await shop.send("refund.failed", shop.refund(unknown, 999, "failed", "re_x")) == "ignored"
    assert await shop.send("refund.created", shop.refund(unknown, 1, "pending", "re_y") | {"charge": None, "payment_intent": None}) == "ignored"
    thin = {"id": "evt_test_65R9", "object": "v2.core.event", "type": "v1.billing.meter.no_meter_found", "livemode": False}
    assert await shop.send_raw(json.dumps(thin).encode()) == "ignored"
    assert await shop.payment(order_id, "status", "refunded", "dispute") == ["captured", 0, None]
    metrics = (await shop.client.request("GET", "/metrics")).text
    assert f'subject="stripe.other",outcome="ignored"}} {len(IGNORED_TYPES) + 1}' in metrics
    assert await shop.client.list_all("/v1/dead-letters") == []


async def test_a_second_charge_for_an_order_is_for_a_person_and_its_refund_does_not_touch_the_first(shop: Shop) -> None:
    """The customer paid twice, and one of the two is given back in the dashboard: the order stays paid."""
    order_id, charge = await shop.paid()
    second = shop.stripe.intents[charge["payment_intent"]] | {"id": "pi_second"}
    assert await shop.send("payment_intent.succeeded", second) == "put_aside"
    second_charge = charge_object("ch_second", second, "succeeded", amount_refunded=PRICE, refunded=True)
    assert await shop.send("charge.refunded", second_charge) == "put_aside"
    assert await shop.payment(order_id, "status", "refunded", "refund_status") == ["captured", 0, None]
    letters = await shop.client.list_all("/v1/dead-letters")
    assert {(letter["consumer"], letter["error"]) for letter in letters} == {("payments-webhooks", "two_charges")}


async def test_answers_to_charges(shop: Shop) -> None:
    """Each order ends as it should, and no answer that concerns one order holds up the others."""
    client, stripe = shop.client, shop.stripe
    authentication = await client.place({"SKU-1": 1}, payment_method="pm_3ds")
    single_use = await client.place({"SKU-1": 1}, payment_method="pm_1SingleUse")
    assert (await client.wait_until_final(single_use))["status"] == "confirmed"
    used_up = await client.place({"SKU-1": 1}, payment_method="pm_1SingleUse")
    advised = await client.place({"SKU-1": 1}, payment_method="pm_decline_brand_new_code")
    slow = await client.place({"SKU-1": 1}, payment_method="pm_slow")
    for order_id, reason in (
        (authentication, "authentication_required"),
        (used_up, "payment_method_unusable"),
        (advised, "brand_new_code"),
    ):
        order = await client.wait_until_final(order_id)
        assert (order["status"], order["reason"]) == ("cancelled", "payment_declined")
        assert await shop.payment(order_id, "status", "reason") == ["declined", reason]
    [intent] = [each for each in stripe.intents.values() if each["metadata"].get("order_id") == slow]
    assert intent["status"] == "processing"
    intent |= {"status": "succeeded", "amount_received": intent["amount"]}
    assert await shop.send("payment_intent.succeeded", intent) == "handled"
    assert (await client.wait_until_final(slow))["status"] == "confirmed"
    faults = iter([Fault.LOCKED, Fault.RATE_LIMITED_BARE, Fault.LOCKED])
    stripe.write_fault = lambda: next(faults, Fault.NONE)
    assert (await client.wait_until_final(await client.place({"SKU-1": 1})))["status"] == "confirmed"
    [canceled] = [each for each in stripe.intents.values() if each["metadata"].get("order_id") == authentication]
    assert canceled["status"] == "canceled"
    assert (await client.get("/readyz"))["status"] == "ready"


async def test_a_webhook_is_refused_for_its_age_and_accepted_when_it_is_signed_again(shop: Shop) -> None:
    """Stripe signs each delivery with the time of that delivery, and with each secret while one is being rolled."""
    order_id, charge = await shop.paid()
    body = orjson.dumps(event_object("evt_old", "charge.refunded", charge | {"amount_refunded": 100}, 1))
    now = shop.stripe.wall_seconds
    shop.stripe.wall_seconds = lambda: now() - 301
    old = shop.stripe.signature(body)
    shop.stripe.wall_seconds = now
    reply = await shop.client.request("POST", WEBHOOKS, headers={"Stripe-Signature": old}, data=body)
    assert (reply.status, reply.body["code"]) == (400, "invalid_signature")
    fresh = shop.stripe.signature(body)
    time, _, signature = fresh.partition(",")
    rolled = f"{time},v1={'0' * 64},{signature},v0={'1' * 64}"
    reply = await shop.client.request("POST", WEBHOOKS, headers={"Stripe-Signature": rolled}, data=body)
    assert (reply.status, reply.body["outcome"]) == (200, "handled")
    assert await shop.payment(order_id, "refunded") == [100]
