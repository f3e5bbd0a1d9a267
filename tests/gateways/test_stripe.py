"""Stripe's adapter: the contract against localstripe, and every fault against a server that misbehaves to order."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from app.gateways.port import (
    Captured,
    ChargeLedger,
    Declined,
    GatewayError,
    GatewayNotReached,
    GatewayRejected,
    GatewayTimeout,
    Pending,
    ResponseMismatch,
)
from app.gateways.stripe import http_session as stripe_wire
from app.gateways.stripe.gateway import StripeGateway
from modules.values import Money
from tests.gateways.contract import GatewayContract, Made, oid
from tests.gateways.fault import Fault, FaultyStripe
from tests.gateways.local import API_KEY, LocalStripe

EUR = Money(1250, "EUR")
NOON = 1_800_000_000


class TestLocalStripe(GatewayContract):
    """Somebody else's look-alike, which knows no idempotency keys."""

    @pytest.fixture
    async def made(self, localstripe: LocalStripe) -> AsyncIterator[Made]:
        gateway = StripeGateway(API_KEY, localstripe.url)
        yield Made(gateway, declining_method="pm_card_chargeCustomerFail")
        await gateway.close()


class TestFaultyStripeInFineWeather(GatewayContract):
    """Our own server looks enough like Stripe for the SDK."""

    @pytest.fixture
    async def made(self, faulty: FaultyStripe) -> AsyncIterator[Made]:
        gateway = StripeGateway(API_KEY, faulty.url)
        yield Made(gateway, declining_method="pm_declined")
        await gateway.close()


@pytest.fixture
async def gateway(faulty: FaultyStripe) -> AsyncIterator[StripeGateway]:
    """An adapter at the faulty server."""
    gateway = StripeGateway(API_KEY, faulty.url)
    yield gateway
    await gateway.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that a test can wait for."""
    monkeypatch.setattr(stripe_wire, "READ_SECONDS", 0.3)
    monkeypatch.setattr("app.gateways.stripe.gateway.READ_SECONDS", 0.3)
    monkeypatch.setattr("app.gateways.stripe.gateway.CALL_SECONDS", 1.5)


async def charge(gateway: StripeGateway, order_id: str, method: str | None = None) -> object:
    return await gateway.charge(f"charge:{order_id}", order_id, EUR, method)


async def find(gateway: StripeGateway, order_id: str) -> object:
    return await gateway.find(f"charge:{order_id}", order_id, EUR)


SILENT = [
    Fault.CHARGE_HANG,
    Fault.CHARGE_CUT,
    Fault.CHARGE_500,
    Fault.CHARGE_HTML,
    Fault.CHARGE_TRUNCATED,
    Fault.CHARGE_DRIP,
]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault", SILENT, ids=lambda fault: fault.name.lower())
async def test_taken_without_an_answer_is_unknown_and_found(
    gateway: StripeGateway, faulty: FaultyStripe, fault: Fault
) -> None:
    """Neither success nor failure; a look tells, and nothing is charged twice."""
    faulty.weather = lambda: fault
    order_id = oid()
    with pytest.raises(GatewayTimeout):
        await charge(gateway, order_id)
    found = await find(gateway, order_id)
    assert isinstance(found, Captured)
    assert faulty.taken() == {order_id: [EUR.amount]}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault", [Fault.HANG, Fault.ERROR_500, Fault.HTML, Fault.REDIRECT], ids=lambda f: f.name.lower())
async def test_no_answer_and_nothing_taken_is_unknown_too(
    gateway: StripeGateway, faulty: FaultyStripe, fault: Fault
) -> None:
    """From here it looks the same; the look finds nothing. A redirect is not followed: it would take the money along."""
    faulty.weather = lambda: fault
    order_id = oid()
    with pytest.raises(GatewayTimeout):
        await charge(gateway, order_id)
    assert await find(gateway, order_id) is None
    assert faulty.elsewhere == 0


@pytest.mark.parametrize(
    ("fault", "kind"), [(Fault.RATE_LIMITED, GatewayNotReached), (Fault.ERROR_503_LATER, GatewayTimeout)], ids=["429", "503"]
)
async def test_what_the_provider_asks_is_passed_on(
    gateway: StripeGateway, faulty: FaultyStripe, fault: Fault, kind: type[GatewayError]
) -> None:
    """Retry-After, also where the answer is a page. Too many calls means that this one did nothing."""
    faulty.weather = lambda: fault
    with pytest.raises(kind) as caught:
        await charge(gateway, oid())
    assert type(caught.value) is kind
    assert caught.value.retry_after_seconds == 7
    assert faulty.taken() == {}


@pytest.mark.parametrize(
    ("fault", "reason"), [(Fault.CHARGE_WRONG, "wrong_amount"), (Fault.OTHER_CURRENCY, "wrong_currency")]
)
async def test_an_answer_that_contradicts_the_request_is_not_believed(
    gateway: StripeGateway, faulty: FaultyStripe, fault: Fault, reason: str
) -> None:
    """It is neither taken nor refused; who looks into the provider's list may find that all is well."""
    faulty.weather = lambda: fault
    order_id = oid()
    with pytest.raises(ResponseMismatch) as caught:
        await charge(gateway, order_id)
    assert (caught.value.reason, caught.value.reference) == (reason, "pi_0")
    assert isinstance(await find(gateway, order_id), Captured)


async def test_a_wrong_charge_in_the_list_contradicts_too(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """As does a second one."""
    faulty.weather = lambda: Fault.WRONG_CHARGE
    order_id = oid()
    for ask in charge, find:
        with pytest.raises(ResponseMismatch, match="another amount"):
            await ask(gateway, order_id)
    faulty.weather = lambda: Fault.FINE
    twice = oid()
    await charge(gateway, twice)
    await charge(gateway, twice)  # nobody looked
    with pytest.raises(ResponseMismatch) as caught:
        await find(gateway, twice)
    assert caught.value.reason == "two_charges"


async def test_a_key_that_was_used_for_something_else_is_put_aside(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """It is no refusal, and asking again is no help."""
    faulty.weather = lambda: Fault.KEY_REUSED
    with pytest.raises(ResponseMismatch) as caught:
        await charge(gateway, oid())
    assert caught.value.reason == "wrong_key"


async def test_nobody_there_means_that_nothing_happened() -> None:
    """A connection that was never made has sent nothing."""
    gateway = StripeGateway(API_KEY, "http://127.0.0.1:1")
    with pytest.raises(GatewayNotReached):
        await charge(gateway, oid())
    await gateway.close()


async def test_a_key_that_is_not_taken_declines_nobody(localstripe: LocalStripe) -> None:
    """That is our trouble and not the customer's; and no error says the key."""
    gateway = StripeGateway("no_such_key_9f3a", localstripe.url)
    with pytest.raises(GatewayNotReached) as caught:
        await charge(gateway, oid(), "pm_card_visa")
    assert "9f3a" not in repr(caught.value)
    await gateway.close()


async def test_the_idempotency_key_is_the_orders(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """Every attempt has the same; refunds have their own."""
    order_id = oid()
    faulty.weather = lambda: Fault.ERROR_500
    for _ in range(2):
        with pytest.raises(GatewayTimeout):
            await charge(gateway, order_id)
    faulty.weather = lambda: Fault.FINE
    taken = await charge(gateway, order_id)
    assert isinstance(taken, Captured)
    await gateway.refund(f"refund:{order_id}", order_id, taken.reference, EUR)
    assert faulty.keys == [f"charge:{order_id}"] * 3 + [f"refund:{order_id}"]


async def test_what_needs_the_customer_is_cancelled_and_declined(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """The customer is not here: nobody can confirm it later, and take money for an order that is off."""
    order_id = oid()
    assert await charge(gateway, order_id, "pm_3ds") == Declined("authentication_required")
    assert [intent["status"] for intent in faulty.intents.values()] == ["canceled"]
    assert await find(gateway, order_id) == Declined("canceled")


async def test_what_the_provider_is_still_at_is_undecided(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """Look again: it is no trouble, and no answer."""
    order_id = oid()
    assert await charge(gateway, order_id, "pm_slow") == Pending("pi_0")
    assert await find(gateway, order_id) == Pending("pi_0")
    faulty.intents["pi_0"]["status"] = "succeeded"
    assert await find(gateway, order_id) == Captured("pi_0")


async def test_without_a_payment_method_only_a_test_key_pays(faulty: FaultyStripe) -> None:
    """With real money, nothing is made up."""
    gateway = StripeGateway("sk_live_x", faulty.url)
    assert await charge(gateway, oid()) == Declined("payment_method_missing")
    assert faulty.calls == []
    await gateway.close()


async def test_a_refund_whose_answer_got_lost_is_not_made_twice(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """It is looked up first, every time."""
    order_id = oid()
    taken = await charge(gateway, order_id)
    assert isinstance(taken, Captured)
    faulty.weather = lambda: Fault.CHARGE_500
    with pytest.raises(GatewayTimeout):
        await gateway.refund("k", order_id, taken.reference, EUR)
    assert await gateway.refund("k", order_id, taken.reference, EUR) == "re_1"
    assert faulty.given_back() == {order_id: [EUR.amount]}


async def test_a_refund_that_is_refused_says_so(localstripe: LocalStripe) -> None:
    """It is no trouble with the line, and has a code."""
    gateway = StripeGateway(API_KEY, localstripe.url)
    with pytest.raises(GatewayRejected):
        await gateway.refund("k", oid(), "pi_nobody", EUR)
    await gateway.close()


@pytest.mark.parametrize("can_filter", [True, False])
async def test_a_hundred_looks_share_their_walks(gateway: StripeGateway, faulty: FaultyStripe, can_filter: bool) -> None:
    """The list is long, and read page by page by all who look at once."""
    faulty.can_filter = can_filter
    orders = [oid() for _ in range(250)]
    for order_id in orders:
        await charge(gateway, order_id)
    faulty.calls.clear()
    found = await asyncio.gather(*(find(gateway, order_id) for order_id in [*orders[:100], oid()]))
    assert [type(answer) for answer in found] == [Captured] * 100 + [type(None)]
    assert len({answer.reference for answer in found if isinstance(answer, Captured)}) == 100
    # One walk of three pages, and one more for whoever came after it had begun; once an attempt to filter in vain.
    assert faulty.calls.count(("list", "")) <= (6 if can_filter else 21)


@pytest.mark.parametrize("is_oldest_first", [True, False])
@pytest.mark.parametrize("seconds", [0, 1])
async def test_a_list_that_grows_at_its_end_is_read_once(
    gateway: StripeGateway, faulty: FaultyStripe, is_oldest_first: bool, seconds: int
) -> None:
    """Where it takes no filter; and whatever its order, nothing that is new in it is missed."""
    faulty.can_filter, faulty.is_oldest_first = False, is_oldest_first

    async def more() -> list[str]:
        orders = [oid() for _ in range(150)]
        for order_id in orders:
            await charge(gateway, order_id)
            faulty.intents[f"pi_{len(faulty.intents) - 1}"]["created"] = NOON + len(faulty.intents) * seconds
        return orders

    orders = await more()
    assert isinstance(await find(gateway, orders[0]), Captured)
    for _ in range(2):
        orders += await more()
        faulty.calls.clear()
        for order_id in orders[0], orders[-1]:
            assert isinstance(await find(gateway, order_id), Captured)
        pages = faulty.calls.count(("list", ""))
        assert (pages <= 9) is (is_oldest_first and seconds == 1)
    assert await find(gateway, oid()) is None
    faulty.intents.clear()  # it has forgotten everything
    assert await find(gateway, orders[0]) is None


async def test_a_list_that_cannot_be_read_tells_everybody(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """And nobody takes it for an empty one."""
    faulty.reading = lambda: Fault.CHARGE_TRUNCATED
    found = await asyncio.gather(*(find(gateway, oid()) for _ in range(5)), return_exceptions=True)
    assert {type(answer) for answer in found} == {GatewayTimeout}


async def test_the_list_tells_what_was_taken_and_given_back(localstripe: LocalStripe) -> None:
    """For whoever compares the books."""
    gateway = StripeGateway(API_KEY, localstripe.url)
    assert isinstance(gateway, ChargeLedger)
    kept, returned, declined = oid(), oid(), oid()
    await charge(gateway, kept)
    taken = await charge(gateway, returned)
    assert isinstance(taken, Captured)
    await gateway.refund(f"refund:{returned}", returned, taken.reference, EUR)
    await charge(gateway, declined, "pm_card_chargeCustomerFail")
    now = datetime.now(UTC)
    records = [record async for record in gateway.records(now - timedelta(hours=1), now + timedelta(hours=1))]
    by_order = {record.order_id: record for record in records}
    assert (by_order[kept].is_captured, by_order[kept].refunded_amount) == (True, 0)
    assert (by_order[returned].is_captured, by_order[returned].refunded_amount) == (True, EUR.amount)
    assert by_order[declined].is_captured is False
    assert {record.amount for record in by_order.values()} >= {EUR}
    assert await gateway.order_of(taken.reference) == returned
    assert await gateway.order_of("pi_nobody") is None
    assert [record async for record in gateway.records(now + timedelta(hours=1), now + timedelta(hours=2))] == []
    await gateway.close()


def test_the_sdk_is_loaded_only_for_who_wants_it() -> None:
    """It takes 30 MiB and a quarter of a second, which the simulated gateway does not cost."""
    code = "import sys, app.bootstrap, app.cli.main; sys.exit('stripe' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("7", 7), ("0", None), ("999999", 600), ("soon", None), ("-3", None), ("1e3", None), ("²", None)],
)
def test_retry_after_is_read_with_care(header: str | None, seconds: float | None) -> None:
    """A number of seconds or a date; nonsense asks for nothing, and nobody keeps us away for a day."""
    assert stripe_wire._retry_after_seconds(header) == seconds


def test_retry_after_may_be_a_date() -> None:
    """As HTTP writes it."""
    at = datetime.now(UTC) + timedelta(seconds=100)
    seconds = stripe_wire._retry_after_seconds(at.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    assert seconds is not None
    assert 90 < seconds <= 100
