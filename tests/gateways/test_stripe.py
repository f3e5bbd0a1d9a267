"""The Stripe adapter: the contract suite against localstripe, and every fault against a server that fails on demand."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest

from app.gateways.gateway_calls import ends_key
from app.gateways.port import (
    Captured,
    ChargeDetails,
    ChargeLedger,
    ChargeOwner,
    Declined,
    Gateway,
    GatewayError,
    GatewayMisconfigured,
    GatewayNotReached,
    GatewayThrottled,
    GatewayTimeout,
    Pending,
    Refunded,
    RefundRejected,
    ResponseMismatch,
)
from app.gateways.stripe import http_session
from app.gateways.stripe.gateway import StripeGateway
from bus.ids import id_lower_bound
from modules.values import Money
from tests.gateways.contract import GatewayCase, GatewayContract, LedgerContract, ProviderFault, new_order_id
from tests.gateways.fault import Fault, FaultyStripe
from tests.gateways.local import API_KEY, LocalStripe
from tests.parts import in_parts
from tests.runtime.harness import until

EUR = Money(1250, "EUR")
PART = Money(500, "EUR")
NOON = 1_800_000_000


class TestLocalStripe(GatewayContract):
    """An independent imitation of Stripe, which ignores idempotency keys."""

    @pytest.fixture
    async def case(self, localstripe: LocalStripe) -> AsyncIterator[GatewayCase]:
        gateway = StripeGateway(API_KEY, localstripe.url)
        faults = {
            ProviderFault.AWAY: lambda: StripeGateway(API_KEY, "http://127.0.0.1:1"),
            ProviderFault.REFUSING: lambda: StripeGateway("no_such_key", localstripe.url),
        }
        yield GatewayCase(gateway, declining_method="pm_card_chargeCustomerFail", faults=faults)
        await gateway.close()


class TestFaultyStripe(LedgerContract):
    """The test server imitates Stripe well enough for the SDK, and keeps a ledger as Stripe does."""

    @pytest.fixture
    async def case(self, faulty: FaultyStripe) -> AsyncIterator[GatewayCase]:
        gateway = StripeGateway(API_KEY, faulty.url)

        def having(fault: Fault) -> Callable[[], StripeGateway]:
            def begin() -> StripeGateway:
                faulty.write_fault = faulty.read_fault = lambda: fault
                return StripeGateway(API_KEY, faulty.url)

            return begin

        def refusing() -> StripeGateway:
            faulty.write_fault = faulty.read_fault = lambda: Fault.NONE
            return StripeGateway("sk_test_expired", faulty.url)

        faulty.account.expired_keys.add("sk_test_expired")
        faults: dict[ProviderFault, Callable[[], Gateway]] = {
            ProviderFault.AWAY: lambda: StripeGateway(API_KEY, "http://127.0.0.1:1"),
            ProviderFault.FAILING: having(Fault.ERROR_500),
            ProviderFault.BUSY: having(Fault.LOCKED),
            ProviderFault.REFUSING: refusing,
        }
        yield GatewayCase(gateway, declining_method="pm_declined", faults=faults, provider=faulty)
        await gateway.close()


@pytest.fixture
async def gateway(faulty: FaultyStripe) -> AsyncIterator[StripeGateway]:
    """An adapter that calls the faulty server."""
    gateway = StripeGateway(API_KEY, faulty.url)
    yield gateway
    await gateway.close()


@pytest.fixture
def short_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits that a test can wait for."""
    monkeypatch.setattr(http_session, "READ_SECONDS", 0.3)
    monkeypatch.setattr("app.gateways.stripe.gateway.READ_SECONDS", 0.3)
    monkeypatch.setattr("app.gateways.stripe.gateway.CALL_SECONDS", 1.5)


async def charge(gateway: StripeGateway, order_id: str, method: str | None = None) -> object:
    return await gateway.charge(f"charge:{order_id}", order_id, EUR, ChargeDetails(method))


async def find(gateway: StripeGateway, order_id: str) -> object:
    return await gateway.find(f"charge:{order_id}", order_id, EUR)


@pytest.mark.parametrize(("fault", "has_ended"), [(Fault.ERROR_500, True), (Fault.CHARGE_500, True), (Fault.ERROR_503_LATER, False)])
async def test_an_error_of_stripe_itself_ends_the_key(
    gateway: StripeGateway, faulty: FaultyStripe, fault: Fault, has_ended: bool
) -> None:
    """Stripe saves its 500 and replays it. The response of a server before the API leaves the key free."""
    faulty.write_fault = lambda: fault
    order_id = new_order_id()
    for _ in range(2):
        with pytest.raises(GatewayTimeout) as caught:
            await charge(gateway, order_id)
        assert caught.value.has_ended is has_ended
        faulty.write_fault = lambda: Fault.NONE
        if not has_ended:
            break
    assert faulty.replayed == has_ended
    if fault is Fault.ERROR_500:
        assert await find(gateway, order_id) is None
        assert isinstance(await gateway.charge("the next key", order_id, EUR, ChargeDetails()), Captured)


async def test_a_call_that_is_still_under_way_keeps_its_key(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """Stripe answers 409 until it has ended. Under another key the order would be charged twice."""
    order_id = new_order_id()
    faulty.write_fault = lambda: Fault.HANG
    first = asyncio.create_task(charge(gateway, order_id))
    await until(lambda: faulty.calls)
    faulty.write_fault = lambda: Fault.NONE
    with pytest.raises(GatewayTimeout) as caught:
        await charge(gateway, order_id)
    assert (caught.value.has_ended, ends_key(caught.value)) == (False, False)
    first.cancel()
    await asyncio.wait([first])


CHARGED_WITHOUT_RESPONSE = [
    Fault.CHARGE_HANG,
    Fault.CHARGE_CUT,
    Fault.CHARGE_500,
    Fault.CHARGE_HTML,
    Fault.CHARGE_TRUNCATED,
    Fault.CHARGE_DRIP,
]


@pytest.mark.usefixtures("short_time_limits")
@pytest.mark.parametrize("fault", CHARGED_WITHOUT_RESPONSE, ids=lambda fault: fault.name.lower())
async def test_a_charge_without_a_response_is_unknown_and_found_by_a_look_up(
    gateway: StripeGateway, faulty: FaultyStripe, fault: Fault
) -> None:
    """It is neither success nor failure; the look-up decides, and nothing is charged twice."""
    faulty.write_fault = lambda: fault
    order_id = new_order_id()
    with pytest.raises(GatewayTimeout):
        await charge(gateway, order_id)
    found = await find(gateway, order_id)
    assert isinstance(found, Captured)
    assert faulty.captured() == {order_id: [EUR.amount]}


@pytest.mark.usefixtures("short_time_limits")
@pytest.mark.parametrize("fault", [Fault.HANG, Fault.ERROR_500, Fault.HTML, Fault.REDIRECT], ids=lambda f: f.name.lower())
async def test_a_call_without_a_response_and_without_a_charge_is_unknown_too(
    gateway: StripeGateway, faulty: FaultyStripe, fault: Fault
) -> None:
    """The client cannot see the difference; the look-up finds nothing. A redirect is not followed: it would charge elsewhere."""
    faulty.write_fault = lambda: fault
    order_id = new_order_id()
    with pytest.raises(GatewayTimeout):
        await charge(gateway, order_id)
    assert await find(gateway, order_id) is None
    assert faulty.redirects_followed == 0


@pytest.mark.parametrize(
    ("fault", "kind"), [(Fault.RATE_LIMITED, GatewayThrottled), (Fault.ERROR_503_LATER, GatewayTimeout)], ids=["429", "503"]
)
async def test_retry_after_is_passed_on(
    gateway: StripeGateway, faulty: FaultyStripe, fault: Fault, kind: type[GatewayError]
) -> None:
    """This holds also for an HTML page. A 429 means that the call had no effect."""
    faulty.write_fault = lambda: fault
    with pytest.raises(kind) as caught:
        await charge(gateway, new_order_id())
    assert type(caught.value) is kind
    assert caught.value.retry_after_seconds == 7
    assert faulty.captured() == {}


@pytest.mark.parametrize(
    ("fault", "reason"), [(Fault.CHARGE_WRONG, "wrong_amount"), (Fault.OTHER_CURRENCY, "wrong_currency")]
)
async def test_a_response_that_contradicts_the_request_is_a_mismatch(
    gateway: StripeGateway, faulty: FaultyStripe, fault: Fault, reason: str
) -> None:
    """The charge counts as neither captured nor declined; a look-up may find that the charge itself is right."""
    faulty.write_fault = lambda: fault
    order_id = new_order_id()
    with pytest.raises(ResponseMismatch) as caught:
        await charge(gateway, order_id)
    assert (caught.value.reason, caught.value.reference) == (reason, "pi_0")
    assert isinstance(await find(gateway, order_id), Captured)


async def test_a_wrong_or_second_charge_in_the_list_is_a_mismatch(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """The look-up compares every charge of the order with the request."""
    faulty.write_fault = lambda: Fault.WRONG_CHARGE
    order_id = new_order_id()
    for call in charge, find:
        with pytest.raises(ResponseMismatch, match="another amount"):
            await call(gateway, order_id)
    faulty.write_fault = lambda: Fault.NONE
    twice = new_order_id()
    await charge(gateway, twice)
    await gateway.charge("another key", twice, EUR, ChargeDetails())  # without a look-up before it
    with pytest.raises(ResponseMismatch) as caught:
        await find(gateway, twice)
    assert caught.value.reason == "two_charges"


async def test_a_key_that_belongs_to_another_request_is_a_mismatch(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """It is not a decline, and repeating the call would not help."""
    faulty.write_fault = lambda: Fault.KEY_REUSED
    with pytest.raises(ResponseMismatch) as caught:
        await charge(gateway, new_order_id())
    assert caught.value.reason == "wrong_key"


async def test_a_refused_connection_means_that_the_call_had_no_effect() -> None:
    """Without a connection nothing was sent."""
    gateway = StripeGateway(API_KEY, "http://127.0.0.1:1")
    with pytest.raises(GatewayNotReached):
        await charge(gateway, new_order_id())
    await gateway.close()


async def test_an_invalid_api_key_declines_no_charge(localstripe: LocalStripe) -> None:
    """It is a fault of the configuration and not of the customer; and no error contains the key."""
    gateway = StripeGateway("no_such_key_9f3a", localstripe.url)
    with pytest.raises(GatewayNotReached) as caught:
        await charge(gateway, new_order_id(), "pm_card_visa")
    assert "9f3a" not in repr(caught.value)
    await gateway.close()


async def test_the_idempotency_key_belongs_to_the_order(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """Every attempt to charge uses the same key; the refund has a key of its own."""
    order_id = new_order_id()
    faulty.write_fault = lambda: Fault.ERROR_503_LATER
    for _ in range(2):
        with pytest.raises(GatewayTimeout):
            await charge(gateway, order_id)
    faulty.write_fault = lambda: Fault.NONE
    captured = await charge(gateway, order_id)
    assert isinstance(captured, Captured)
    await gateway.refund(f"refund:{order_id}", order_id, captured.reference, EUR)
    assert faulty.keys == [f"charge:{order_id}"] * 3 + [f"refund:{order_id}"]


async def test_a_charge_that_needs_the_customer_is_cancelled_and_declined(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """The customer is not present. Cancelled, it cannot be confirmed later, for an order that is cancelled by then."""
    order_id = new_order_id()
    assert await charge(gateway, order_id, "pm_3ds") == Declined("authentication_required")
    assert [intent["status"] for intent in faulty.intents.values()] == ["canceled"]
    assert await find(gateway, order_id) == Declined("canceled")


async def test_a_charge_that_the_provider_still_processes_is_pending(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """It is no failure; a later look-up returns the result."""
    order_id = new_order_id()
    assert await charge(gateway, order_id, "pm_slow") == Pending("pi_0")
    assert await find(gateway, order_id) == Pending("pi_0")
    faulty.intents["pi_0"] |= {"status": "succeeded", "amount_received": EUR.amount}
    assert await find(gateway, order_id) == Captured("pi_0")


async def test_an_order_without_a_payment_method_is_paid_only_with_a_test_key(faulty: FaultyStripe) -> None:
    """In live mode there is no default payment method."""
    gateway = StripeGateway("sk_live_x", faulty.url)
    assert await charge(gateway, new_order_id()) == Declined("payment_method_missing")
    assert faulty.calls == []
    await gateway.close()


@pytest.mark.usefixtures("short_time_limits")
async def test_a_refund_whose_response_got_lost_is_not_made_twice(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """Each refund is looked up before it is made."""
    order_id = new_order_id()
    captured = await charge(gateway, order_id)
    assert isinstance(captured, Captured)
    faulty.write_fault = lambda: Fault.CHARGE_CUT
    with pytest.raises(GatewayTimeout):
        await gateway.refund("k", order_id, captured.reference, EUR)
    assert await gateway.refund("k", order_id, captured.reference, EUR) == Refunded("re_1", EUR.amount)
    assert faulty.refunded() == {order_id: [EUR.amount]}


@pytest.mark.parametrize(("fault", "ends"), [(Fault.CHARGE_500, None), (Fault.ERROR_500, True)])
async def test_a_500_ends_the_key_of_a_refund_only_if_the_refund_was_not_made(
    gateway: StripeGateway, faulty: FaultyStripe, fault: Fault, ends: bool | None
) -> None:
    """The next attempt has a new key, under which a refund of a part would be made a second time."""
    order_id = new_order_id()
    captured = await charge(gateway, order_id)
    assert isinstance(captured, Captured)
    faulty.write_fault = lambda: fault
    if ends is None:
        assert await gateway.refund("k", order_id, captured.reference, PART) == Refunded("re_1", PART.amount)
        return
    with pytest.raises(GatewayTimeout) as caught:
        await gateway.refund("k", order_id, captured.reference, PART)
    assert ends_key(caught.value)
    assert faulty.refunded() == {}


async def test_a_look_up_that_fails_ends_no_key_of_a_refund(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """An earlier call under the key may have made the refund: neither a 500 nor a missing permission shows whether it did."""
    order_id = new_order_id()
    captured = await charge(gateway, order_id)
    assert isinstance(captured, Captured)
    faulty.read_fault = lambda: Fault.ERROR_500
    with pytest.raises(GatewayError) as caught:
        await gateway.refund("k", order_id, captured.reference, PART)
    assert not ends_key(caught.value)
    faulty.read_fault = lambda: Fault.NONE
    faulty.account.denied.add("refund_read")
    with pytest.raises(GatewayMisconfigured) as refused:
        await gateway.refund("k", order_id, captured.reference, PART)
    assert not ends_key(refused.value)


async def test_a_rejected_refund_has_a_code(localstripe: LocalStripe) -> None:
    """It is not a connection failure."""
    gateway = StripeGateway(API_KEY, localstripe.url)
    assert isinstance(await gateway.refund("k", new_order_id(), "pi_unknown", EUR), RefundRejected)
    await gateway.close()


@pytest.mark.parametrize("can_filter", [True, pytest.param(False, marks=pytest.mark.slow)])
async def test_a_hundred_look_ups_share_their_scans(gateway: StripeGateway, faulty: FaultyStripe, can_filter: bool) -> None:
    """The list is long; concurrent look-ups read it together, page by page."""
    faulty.can_filter = can_filter
    orders = [new_order_id() for _ in range(250)]
    for order_id in orders:
        await charge(gateway, order_id)
    faulty.calls.clear()
    found = await asyncio.gather(*(find(gateway, order_id) for order_id in [*orders[:100], new_order_id()]))
    assert [type(result) for result in found] == [Captured] * 100 + [type(None)]
    assert len({result.reference for result in found if isinstance(result, Captured)}) == 100
    # A scan of three pages, and one more for the look-ups that were requested after it had begun; once a rejected filter.
    assert faulty.calls.count(("list", "")) <= (6 if can_filter else 21)


@pytest.mark.parametrize(
    ("is_oldest_first", "seconds"),
    in_parts([(True, 1), (False, 0), (True, 0), (False, 1)]),
)
async def test_a_list_that_grows_at_its_end_is_read_once(
    gateway: StripeGateway, faulty: FaultyStripe, is_oldest_first: bool, seconds: int
) -> None:
    """This is for a list without a filter. Whatever its order, no new charge in it is missed."""
    faulty.can_filter, faulty.is_oldest_first = False, is_oldest_first

    async def make_charges() -> list[str]:
        orders = [new_order_id() for _ in range(150)]
        for order_id in orders:
            await charge(gateway, order_id)
            faulty.intents[f"pi_{len(faulty.intents) - 1}"]["created"] = NOON + len(faulty.intents) * seconds
        return orders

    orders = await make_charges()
    assert isinstance(await find(gateway, orders[0]), Captured)
    for _ in range(2):
        orders += await make_charges()
        faulty.calls.clear()
        for order_id in orders[0], orders[-1]:
            assert isinstance(await find(gateway, order_id), Captured)
        pages = faulty.calls.count(("list", ""))
        assert (pages <= 9) is (is_oldest_first and seconds == 1)
    assert await find(gateway, new_order_id()) is None
    faulty.intents.clear()  # the server has lost its data
    assert await find(gateway, orders[0]) is None


async def test_a_charge_is_asked_for_again_where_its_key_is_remembered(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """One cheap request shows that the server knows keys; an order that is older than their memory is looked up."""
    order_id = new_order_id()
    results = await asyncio.gather(*(gateway.repeats_safely(order_id) for _ in range(50)))
    assert results == [True] * 50
    assert faulty.calls == [("list", "")]
    faulty.write_fault = lambda: Fault.CHARGE_CUT
    with pytest.raises(GatewayTimeout):
        await charge(gateway, order_id)
    faulty.write_fault = lambda: Fault.NONE
    assert isinstance(await charge(gateway, order_id), Captured)
    assert faulty.captured() == {order_id: [EUR.amount]}
    assert faulty.replayed == 1
    assert await gateway.repeats_safely("01890000-0000-7000-8000-000000000000") is False


@pytest.mark.parametrize(("hours", "is_safe"), [(22.9, True), (23.1, False), (24, False)])
async def test_a_charge_is_not_asked_for_again_where_its_key_may_be_forgotten(
    gateway: StripeGateway, hours: float, is_safe: bool
) -> None:
    """Stripe remembers a key for 24 hours; one hour of them is left for clocks that differ."""
    placed_at = datetime.now(UTC) - timedelta(hours=hours)
    assert await gateway.repeats_safely(f"{id_lower_bound(placed_at)}-7000-8000-000000000000") is is_safe


async def test_a_payment_method_that_does_not_exist_declines(localstripe: LocalStripe) -> None:
    """A compatible server answers with 404 and does not name what is missing."""
    gateway = StripeGateway(API_KEY, localstripe.url)
    assert await charge(gateway, new_order_id(), "pm_unknown") == Declined("resource_missing")
    await gateway.close()


async def test_a_server_that_ignores_keys_is_always_looked_up(localstripe: LocalStripe) -> None:
    """It does not identify its responses as Stripe does."""
    gateway = StripeGateway(API_KEY, localstripe.url)
    assert isinstance(await charge(gateway, new_order_id()), Captured)
    assert await gateway.repeats_safely(new_order_id()) is False
    await gateway.close()


async def test_a_charge_that_is_asked_for_again_has_its_present_state(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """Stripe repeats the response of the first call, in which the charge may have been in process."""
    order_id = new_order_id()
    assert await charge(gateway, order_id, "pm_slow") == Pending("pi_0")
    faulty.intents["pi_0"] |= {"status": "succeeded", "amount_received": EUR.amount}
    assert await charge(gateway, order_id, "pm_slow") == Captured("pi_0")


@pytest.mark.parametrize("payment_method", ["pm_slow", "pm_3ds"])
@pytest.mark.parametrize("fault", [Fault.RATE_LIMITED_BARE, Fault.LOCKED])
async def test_a_charge_that_was_made_is_pending_if_a_later_call_has_no_effect(
    gateway: StripeGateway, faulty: FaultyStripe, payment_method: str, fault: Fault
) -> None:
    """An error without an effect would mean that there is no charge: an order that is cancelled now would not be refunded."""
    faulty.read_fault = lambda: fault
    assert await charge(gateway, new_order_id(), payment_method) == Pending("pi_0")


async def test_a_long_list_is_read_by_several_readers_and_only_once(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """Forty pages take a few turns; the next look-up reads only what came after them."""
    orders = [new_order_id() for _ in range(10)]
    faulty.fill(4_000, order_id=lambda n: orders[n // 400] if n % 400 == 0 else None)
    for intent in faulty.intents.values():
        intent |= {"amount": EUR.amount, "amount_received": EUR.amount}
    found = await asyncio.gather(*(find(gateway, order_id) for order_id in orders))
    assert [type(result) for result in found] == [Captured] * 10
    pages = faulty.calls.count(("list", ""))
    assert pages < 70
    assert isinstance(await find(gateway, orders[3]), Captured)
    assert await find(gateway, new_order_id()) is None
    assert faulty.calls.count(("list", "")) <= pages + 2


@pytest.mark.slow
async def test_only_the_period_in_question_is_read(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """Both ends of the period are passed: an hour of last month takes one page, however many charges followed."""
    for _ in range(300):
        await charge(gateway, new_order_id())
    for ordinal, intent in enumerate(faulty.intents.values()):
        intent["created"] = NOON + 3600 * (ordinal >= 7)
    faulty.calls.clear()
    noon = datetime.fromtimestamp(NOON, UTC)
    records = [record async for record in gateway.records(noon, noon + timedelta(hours=1))]
    assert len(records) == 7
    assert faulty.calls == [("list", "")]


@pytest.mark.parametrize("can_filter", [True, False])
async def test_the_period_includes_its_begin_and_not_its_end(
    gateway: StripeGateway, faulty: FaultyStripe, can_filter: bool
) -> None:
    """To the second, in which Stripe counts, whether the server can filter or not; an end within a second includes it."""
    faulty.can_filter = can_filter
    for second in (-1, 0, 59, 60, 61):
        await charge(gateway, new_order_id())
        [*_, intent] = faulty.intents.values()
        intent["created"] = NOON + second
    noon = datetime.fromtimestamp(NOON, UTC)

    async def seconds(begin: timedelta, end: timedelta) -> list[float]:
        found = [record async for record in gateway.records(noon + begin, noon + end)]
        return sorted((record.created_at - noon).total_seconds() for record in found)

    minute, half = timedelta(minutes=1), timedelta(seconds=0.5)
    assert await seconds(timedelta(0), minute) == [0, 59]
    assert await seconds(half, minute + half) == [59, 60]


async def test_a_list_that_cannot_be_read_fails_every_look_up(gateway: StripeGateway, faulty: FaultyStripe) -> None:
    """It is never taken for an empty list."""
    faulty.read_fault = lambda: Fault.CHARGE_TRUNCATED
    found = await asyncio.gather(*(find(gateway, new_order_id()) for _ in range(5)), return_exceptions=True)
    assert {type(result) for result in found} == {GatewayTimeout}


async def test_the_ledger_lists_what_was_captured_and_refunded(localstripe: LocalStripe) -> None:
    """The reconciliation reads it."""
    gateway = StripeGateway(API_KEY, localstripe.url)
    assert isinstance(gateway, ChargeLedger)
    kept, refunded, declined = new_order_id(), new_order_id(), new_order_id()
    await charge(gateway, kept)
    captured = await charge(gateway, refunded)
    assert isinstance(captured, Captured)
    await gateway.refund(f"refund:{refunded}", refunded, captured.reference, EUR)
    await charge(gateway, declined, "pm_card_chargeCustomerFail")
    now = datetime.now(UTC)
    records = [record async for record in gateway.records(now - timedelta(hours=1), now + timedelta(hours=1))]
    by_order = {record.order_id: record for record in records}
    assert (by_order[kept].is_captured, by_order[kept].refunded_amount) == (True, 0)
    assert (by_order[refunded].is_captured, by_order[refunded].refunded_amount) == (True, EUR.amount)
    assert by_order[declined].is_captured is False
    assert {record.amount for record in by_order.values()} >= {EUR}
    assert await gateway.owner_of(captured.reference) == ChargeOwner(captured.reference, refunded)
    assert await gateway.owner_of("pi_unknown") is None
    assert [record async for record in gateway.records(now + timedelta(hours=1), now + timedelta(hours=2))] == []
    await gateway.close()


@pytest.mark.slow
def test_the_sdk_is_loaded_only_with_the_stripe_gateway() -> None:
    """It takes 30 MiB and a quarter of a second, which the simulated gateway does not need."""
    code = "import sys, app.bootstrap, app.cli.main; sys.exit('stripe' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("7", 7), ("0", None), ("999999", 600), ("soon", None), ("-3", None), ("1e3", None), ("²", None)],
)
def test_an_invalid_retry_after_is_ignored_and_a_long_one_is_cut(header: str | None, seconds: float | None) -> None:
    """It is a number of seconds or a date, and at most ten minutes."""
    assert http_session._retry_after_seconds(header) == seconds


def test_retry_after_may_be_a_date() -> None:
    """RFC 9110 allows the format of HTTP dates."""
    at = datetime.now(UTC) + timedelta(seconds=100)
    seconds = http_session._retry_after_seconds(at.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    assert seconds is not None
    assert 90 < seconds <= 100
