"""What a look-up makes of the PaymentIntents of an order, by their statuses, and which of them it leaves open."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from app.gateways.port import (
    Captured,
    ChargeDetails,
    ChargeResult,
    Declined,
    GatewayMisconfigured,
    Pending,
    ResponseMismatch,
)
from app.gateways.stripe.charge_params import charge_params
from app.gateways.stripe.gateway import SKEW_SECONDS, StripeGateway
from modules.values import Money
from tests.gateways.contract import new_order_id
from tests.gateways.fault import FaultyStripe
from tests.gateways.local import API_KEY

EUR = Money(1250, "EUR")
FINAL, SOFT = "declined", "declined softly"
AUTHENTICATION = Declined("authentication_required")
CANCELED = Declined("canceled")
NO_FUNDS = Declined("insufficient_funds")
LATER = Declined("processing_error", is_soft=True)


@pytest.fixture
async def gateway(faulty: FaultyStripe) -> AsyncIterator[StripeGateway]:
    gateway = StripeGateway(API_KEY, faulty.url)
    yield gateway
    await gateway.close()


async def give(gateway: StripeGateway, faulty: FaultyStripe, statuses: Sequence[str]) -> str:
    """Give a new order one PaymentIntent for each of *statuses*, the oldest first; return the id of the order."""
    order_id = new_order_id()
    for n, status in enumerate(statuses):
        assert isinstance(await gateway.charge(f"k{n}", order_id, EUR, ChargeDetails()), Captured)
        changes: dict[str, Any] = {"status": status} if status == "succeeded" else {"status": status, "amount_received": 0}
        if status in (FINAL, SOFT):
            error = {"code": "card_declined", "decline_code": "insufficient_funds" if status == FINAL else "processing_error"}
            changes |= {"status": "requires_payment_method", "last_payment_error": error}
        faulty.intents[f"pi_{n}"] |= changes
    return order_id


def open_intents(faulty: FaultyStripe) -> list[str]:
    """Return the ids of the PaymentIntents that the customer could still confirm."""
    closed = ("succeeded", "canceled", "processing", "requires_capture")
    return [id for id, intent in faulty.intents.items() if intent["status"] not in closed]


@pytest.mark.parametrize(
    ("statuses", "found", "cancelled"),
    [
        (["succeeded"], Captured("pi_0"), Captured("pi_0")),
        (["processing"], Pending("pi_0"), Pending("pi_0")),
        (["requires_capture"], Pending("pi_0"), Pending("pi_0")),
        (["canceled"], CANCELED, CANCELED),
        (["requires_action"], AUTHENTICATION, AUTHENTICATION),
        (["requires_confirmation"], None, CANCELED),
        ([FINAL], NO_FUNDS, NO_FUNDS),
        ([SOFT], LATER, LATER),
        ([SOFT, FINAL], NO_FUNDS, NO_FUNDS),
        ([SOFT, SOFT], LATER, LATER),
        ([SOFT, "canceled"], LATER, LATER),
        ([SOFT, "succeeded"], Captured("pi_1"), Captured("pi_1")),
        ([SOFT, "processing"], Pending("pi_1"), Pending("pi_1")),
        (["processing", "succeeded"], Captured("pi_1"), Captured("pi_1")),
        (["canceled", "requires_action"], CANCELED, CANCELED),
    ],
)
async def test_the_charge_of_an_order_follows_from_all_its_intents(
    gateway: StripeGateway, faulty: FaultyStripe, statuses: list[str], found: ChargeResult | None, cancelled: ChargeResult
) -> None:
    """One that was captured counts before one that is open, and that before a decline; an unwanted charge is left open nowhere."""
    order_id = await give(gateway, faulty, statuses)
    before = open_intents(faulty)
    assert await gateway.find("k", order_id, EUR) == found
    waits_for_customer = {"pi_0"} if statuses == ["requires_action"] else set()
    assert open_intents(faulty) == [id for id in before if id not in waits_for_customer]
    assert await gateway.cancel("k", order_id, EUR) == (CANCELED if waits_for_customer else cancelled)
    assert isinstance(cancelled, Captured | Pending) or open_intents(faulty) == []


@pytest.mark.parametrize("call", ["find", "cancel"])
async def test_two_charges_of_one_order_are_no_result(gateway: StripeGateway, faulty: FaultyStripe, call: str) -> None:
    """A person has to give one of them back."""
    order_id = await give(gateway, faulty, ["succeeded", SOFT, "succeeded"])
    with pytest.raises(ResponseMismatch) as caught:
        await getattr(gateway, call)("k", order_id, EUR)
    assert (caught.value.reason, caught.value.reference) == ("two_charges", "pi_2")


@pytest.mark.parametrize("method", ["pm_3ds", "pm_confirm"])
async def test_a_charge_that_waits_for_the_customer_is_cancelled(gateway: StripeGateway, faulty: FaultyStripe, method: str) -> None:
    """The customer is not present."""
    assert isinstance(await gateway.charge("k", new_order_id(), EUR, ChargeDetails(method)), Declined)
    assert open_intents(faulty) == []


async def test_a_refused_charge_does_not_cost_the_next_ones_their_description(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """Stripe refuses a charge without a code, for example of an account that cannot charge; it is made again as it was."""
    order_id = new_order_id()
    faulty.account.can_charge = False
    with pytest.raises(GatewayMisconfigured):
        await gateway.charge("k1", order_id, EUR, ChargeDetails())
    faulty.account.can_charge = True
    assert isinstance(await gateway.charge("k2", order_id, EUR, ChargeDetails()), Captured)
    assert faulty.keys == ["k1", "k2"]
    assert [intent["description"] for intent in faulty.intents.values()] == [f"Order {order_id}"]


async def test_an_intent_that_has_changed_when_it_is_cancelled_is_compared_again(
    gateway: StripeGateway, faulty: FaultyStripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have captured the money since it was read, or turn out to be for another amount: neither is a decline."""
    order_id = await give(gateway, faulty, ["succeeded"])
    intent = dict(faulty.intents["pi_0"])

    async def read_before(order_id: str) -> list[dict[str, Any]]:
        return [intent | {"status": "requires_action", "amount_received": 0}]

    with monkeypatch.context() as patch:
        patch.setattr(gateway, "_intents_of", read_before)
        assert await gateway.cancel("k", order_id, EUR) == Pending("pi_0")
        faulty.intents["pi_0"] |= {"status": "requires_action", "amount": 99}
        with pytest.raises(ResponseMismatch):
            await gateway.cancel("k", order_id, EUR)
    faulty.intents["pi_0"] = intent
    assert await gateway.cancel("k", order_id, EUR) == Captured("pi_0")


async def test_a_charge_is_found_although_the_clocks_differ(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """The provider's clock may be some minutes behind the one that the order's id has its time from."""
    faulty.wall_seconds = lambda: time.time() - SKEW_SECONDS + 10
    order_id = new_order_id()
    assert await gateway.charge("k", order_id, EUR, ChargeDetails()) == await gateway.find("k", order_id, EUR) == Captured("pi_0")


def test_only_cards_are_charged() -> None:
    """Other kinds that are enabled in the dashboard may take the customer to another page, or days to pay."""
    params = charge_params(EUR, "pm_1", None, {"order_id": "o"})
    assert (params["payment_method_types"], params["confirm"], params["currency"]) == (["card"], True, "eur")
