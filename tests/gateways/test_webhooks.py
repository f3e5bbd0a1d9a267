"""Stripe's webhooks: signatures, mismatches, and that each counts once."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from loguru import logger

from app.gateways.breakers.circuit_breaker import CircuitBreaker
from app.gateways.breakers.operations import Operation, Operations
from app.gateways.port import Captured, ChargeDetails, GatewayMisconfigured, GatewayNotReached
from app.gateways.stripe.gateway import StripeGateway
from app.gateways.stripe.webhook_event import (
    TOLERANCE_SECONDS,
    InvalidSignature,
    OldSignature,
    check_signature,
    parse_event,
)
from app.gateways.webhook_handler import CONSUMER, StripeWebhookHandler
from app.storage.errors import StorageUnavailable
from modules.inventory.events import StockReserved
from modules.orders.events import OrderCancelled
from modules.payments.events import ChargeSucceeded
from modules.payments.state import Payment, PaymentStatus
from modules.values import Money
from tests.gateways.fault import FaultyStripe
from tests.gateways.local import API_KEY
from tests.gateways.stripe_payloads import charge_object, dispute_object, refund_object
from tests.runtime.harness import CONTEXT, Harness, harness_at, oid

SECRET = "whsec_test"
NOW = 1_800_000_000
EUR = Money(100, "EUR")


def signed(body: bytes, secret: str = SECRET, at: int = NOW) -> str:
    """Return the signature header for *body*, as Stripe creates it."""
    return f"t={at},v1={digest(body, secret, at)}"


def digest(body: bytes, secret: str = SECRET, at: int = NOW) -> str:
    return hmac.new(secret.encode(), b"%d." % at + body, sha256).hexdigest()


def intent(order_id: str | None, **changes: Any) -> dict[str, Any]:
    metadata = {} if order_id is None else {"order_id": order_id}
    found = {"object": "payment_intent", "id": "pi_1", "amount": 100, "currency": "eur", "status": "succeeded"}
    return found | {"metadata": metadata} | changes


def event(value: dict[str, Any], type_: str = "payment_intent.succeeded", id: str = "evt_1") -> bytes:
    return json.dumps({"object": "event", "id": id, "type": type_, "data": {"object": value}}).encode()


def failed(order_id: str) -> bytes:
    value = intent(order_id, status="requires_payment_method", last_payment_error={"code": "card_declined"})
    return event(value, "payment_intent.payment_failed", "evt_2")


def refund(order_id: str | None, refunded: int = 100, id: str = "evt_3") -> bytes:
    metadata = {} if order_id is None else {"order_id": order_id}
    value = {"object": "charge", "id": "ch_1", "payment_intent": "pi_1", "amount": 100, "currency": "eur"}
    return event(value | {"amount_refunded": refunded, "metadata": metadata}, "charge.refunded", id)


@define
class WebhookHarness:
    """The webhook handler, with a running payments module."""

    harness: Harness
    handler: StripeWebhookHandler
    gateway: StripeGateway
    look_up: Operation

    async def handle(self, body: bytes) -> str:
        return await self.handler.handle(body, signed(body), CONTEXT)

    async def request_payment(self, order_id: str) -> None:
        """Have the payment of an order requested."""
        reserved = StockReserved(order_id=order_id, lines=(), total=EUR, payment_method=None)
        await self.harness.submit("payments", reserved)

    async def payment(self, order_id: str) -> Payment:
        found = await self.harness.runners["payments"].get(Payment, order_id)
        assert isinstance(found, Payment)
        return found

    async def count_published(self, subject: str) -> int:
        sql = "SELECT count(*) FROM payments_outbox WHERE subject = ?"
        count: int = (await self.harness.rows(sql, f"payments.{subject}.v1"))[0][0]
        return count

    async def dead_letters(self) -> list[tuple[str, str]]:
        stored = await self.harness.dead_letter_store.list(CONSUMER, None, None, 100)
        return [(each.dead_letter.error, each.dead_letter.message.id) for each in stored]


async def _fail_to_store(dead_letter: Any) -> None:
    raise StorageUnavailable("the test cuts the connection")


@pytest.fixture
async def webhooks(tmp_path: Path, faulty: FaultyStripe) -> AsyncIterator[WebhookHarness]:
    gateway = StripeGateway(API_KEY, faulty.url)
    async with harness_at(tmp_path / "test.db") as harness:
        runner = harness.runners["payments"]
        harness.run(runner.run())
        dead_letters = harness.dead_letter_store
        look_up = Operations.of("stripe", harness.clock, lambda kind: CircuitBreaker(harness.clock.monotonic)).look_up
        handler = StripeWebhookHandler(
            runner, SECRET, gateway, look_up, dead_letters, harness.clock, harness.metrics, lambda: NOW
        )
        yield WebhookHarness(harness, handler, gateway, look_up)
    await gateway.close()


# Signatures


def test_a_signature_over_the_raw_body_is_valid() -> None:
    """It may come with others: while a secret is being rolled there are two, and other schemes are ignored."""
    body = b'{"a": 1}'
    good = digest(body)
    for header in f"t={NOW},v1={good}", f"t={NOW},v1={'0' * 64},v1={good},v0=abc", f"v1={good}, t={NOW}":
        check_signature(body, header, SECRET, NOW)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        f"t={NOW}",
        f"v1={digest(b'x')}",
        f"t={NOW},v0={digest(b'x')}",
        f"t={NOW + 1},v1={digest(b'x')}",
        f"t={NOW},t={NOW},v1={digest(b'x')}",
        f"t={NOW},v1={digest(b'x', 'another')}",
        f"t={NOW},v1={digest(b'y')}",
        f"t={NOW},v1={digest(b'x').upper()}",
        f"t=99999999999999,v1={digest(b'x')}",
        f"t={NOW},v1=é",
        ",".join([f"t={NOW}", *["v1=0"] * 50, f"v1={digest(b'x')}"]),
    ],
)
def test_any_other_signature_header_is_invalid(header: str | None) -> None:
    """It is rejected with `InvalidSignature`, and never causes another error."""
    with pytest.raises(InvalidSignature):
        check_signature(b"x", header, SECRET, NOW)


@pytest.mark.parametrize(("age", "is_valid"), [(0, True), (300, True), (301, False), (-300, True), (-301, False)])
def test_a_signature_expires_after_five_minutes(age: int, is_valid: bool) -> None:
    """A recorded webhook cannot be sent again later, nor one that is dated in the future."""
    assert TOLERANCE_SECONDS == 300
    header = signed(b"x", at=NOW - age)
    if is_valid:
        check_signature(b"x", header, SECRET, NOW)
    else:
        with pytest.raises(InvalidSignature):
            check_signature(b"x", header, SECRET, NOW)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"object":"event","id":"x","type":"y"}', b"\xff", b'{"id":1}'])
def test_a_body_that_is_not_an_event_is_rejected(body: bytes) -> None:
    """This holds even if it is signed."""
    with pytest.raises(ValueError):  # noqa: PT011  # of any kind
        parse_event(body)


# Outcomes


async def test_a_webhook_may_arrive_before_the_result_of_the_call(webhooks: WebhookHarness) -> None:
    """Then the order is paid, and the later result of the call changes nothing."""
    await webhooks.request_payment(oid(1))
    assert await webhooks.handle(event(intent(oid(1)))) == "handled"
    payment = await webhooks.payment(oid(1))
    assert (payment.status, payment.reference, payment.calls) == (PaymentStatus.CAPTURED, "pi_1", 0)
    await webhooks.harness.submit("payments", ChargeSucceeded(order_id=oid(1), reference="pi_1", calls=1))
    assert await webhooks.count_published("captured") == 1


async def test_a_webhook_may_arrive_after_the_result_of_the_call(webhooks: WebhookHarness) -> None:
    """It matches, and changes nothing."""
    await webhooks.request_payment(oid(1))
    await webhooks.harness.submit("payments", ChargeSucceeded(order_id=oid(1), reference="pi_1", calls=1))
    assert await webhooks.handle(event(intent(oid(1)))) == "handled"
    assert await webhooks.count_published("captured") == 1
    assert await webhooks.dead_letters() == []


async def test_a_repeated_webhook_counts_once(webhooks: WebhookHarness) -> None:
    """Stripe repeats a webhook until it receives a 2xx; of twenty concurrent ones, one is handled."""
    await webhooks.request_payment(oid(1))
    outcomes = await asyncio.gather(*(webhooks.handle(event(intent(oid(1)))) for _ in range(20)))
    assert sorted(outcomes) == ["handled"] + ["repeated"] * 19
    assert await webhooks.count_published("captured") == 1


async def test_a_failed_payment_and_a_refund_are_handled_too(webhooks: WebhookHarness) -> None:
    """A failure declines the payment; a refund of a cancelled order that was made elsewhere counts."""
    await webhooks.request_payment(oid(1))
    assert await webhooks.handle(failed(oid(1))) == "handled"
    payment = await webhooks.payment(oid(1))
    assert (payment.status, payment.reason) == (PaymentStatus.DECLINED, "card_declined")
    await webhooks.request_payment(oid(2))
    await webhooks.handle(event(intent(oid(2)), id="evt_9"))
    assert await webhooks.handle(refund(oid(2))) == "handled"
    cancelled = OrderCancelled(order_id=oid(2), customer_id="c", items=(), reason="requested")
    await webhooks.harness.submit("payments", cancelled)
    assert await webhooks.count_published("refund_requested") == 0
    assert (await webhooks.payment(oid(2))).status is PaymentStatus.REFUNDED
    assert await webhooks.dead_letters() == []


async def test_a_refund_whose_charge_names_no_order_is_looked_up(webhooks: WebhookHarness, faulty: FaultyStripe) -> None:
    """Its PaymentIntent names the order."""
    await webhooks.request_payment(oid(1))
    await webhooks.handle(event(intent(oid(1))))
    faulty.intents["pi_1"] = intent(oid(1))
    assert await webhooks.handle(refund(None)) == "handled"
    assert (await webhooks.payment(oid(1))).status is PaymentStatus.REFUNDED


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (event(intent(oid(1), amount=101)), "wrong_amount"),
        (event(intent(oid(1), currency="usd")), "wrong_currency"),
        (event(intent(oid(1), status="processing")), "nonsense"),
        (event(intent(oid(1), amount_received=1)), "nonsense"),
        (event(intent(oid(1), id="another")), "wrong_id"),
        (event({"object": "charge"}), "nonsense"),
        (event({"object": "charge"}, "charge.refunded"), "nonsense"),
    ],
)
async def test_a_webhook_that_contradicts_our_data_becomes_one_dead_letter(
    webhooks: WebhookHarness, body: bytes, error: str
) -> None:
    """A person reviews the dead letter; Stripe gets a 2xx, because repeating the webhook would not help."""
    await webhooks.request_payment(oid(1))
    assert [await webhooks.handle(body), await webhooks.handle(body)] == ["put_aside"] * 2
    [(found, message_id)] = await webhooks.dead_letters()
    assert (found, message_id[:4]) == (error, "evt_")
    assert (await webhooks.payment(oid(1))).status is PaymentStatus.PENDING


async def test_a_second_charge_for_an_order_becomes_a_dead_letter(webhooks: WebhookHarness) -> None:
    """The customer was charged twice, which a person has to resolve: the letter names the order and the request of the webhook."""
    await webhooks.request_payment(oid(1))
    await webhooks.handle(event(intent(oid(1))))
    body = event(intent(oid(1), id="pi_2"), id="evt_8")
    assert await webhooks.handle(body) == "put_aside"
    assert await webhooks.dead_letters() == [("two_charges", "evt_8")]
    [stored] = await webhooks.harness.dead_letter_store.list(CONSUMER, None, None, 100)
    message = stored.dead_letter.message
    assert (message.subject, message.key, message.body) == ("stripe.payment_intent.succeeded", oid(1), body)
    headers = {"ce-id": "evt_8", "ce-correlationid": CONTEXT.correlation_id, "traceparent": CONTEXT.traceparent}
    assert message.headers == headers
    assert (await webhooks.payment(oid(1))).reference == "pi_1"


async def test_a_refund_made_in_the_dashboard_is_recorded(webhooks: WebhookHarness) -> None:
    """In part or as a whole, also if the notice of the capture arrives later; it is no dead letter."""
    for n, is_captured in (1, True), (2, False):
        await webhooks.request_payment(oid(n))
        if is_captured:
            await webhooks.handle(event(intent(oid(n)), id=f"evt_{n}0"))
        assert await webhooks.handle(refund(oid(n), 40, f"evt_{n}1")) == "handled"
        payment = await webhooks.payment(oid(n))
        assert (payment.status, payment.refunded, payment.kept) == (PaymentStatus.CAPTURED, 40, 60)
        assert await webhooks.handle(refund(oid(n), 100, f"evt_{n}2")) == "handled"
        assert (await webhooks.payment(oid(n))).status is PaymentStatus.REFUNDED
        assert await webhooks.handle(event(intent(oid(n)), id=f"evt_{n}3")) == "handled"
    assert await webhooks.dead_letters() == []


async def test_the_payments_of_another_shop_are_counted_and_ignored(webhooks: WebhookHarness) -> None:
    """
    It uses the same account at the provider; its metadata, if any, does not hold the id of an order of ours.

    Nothing is logged: there is no other installation of this program.
    """
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING")
    others = [None, "1001", "'; DROP TABLE orders", "550e8400-e29b-41d4-a716-446655440000"]
    bodies = [
        body
        for n, order_id in enumerate(others)
        for body in (
            event(intent(order_id), id=f"evt_{n}a"),
            event(intent(order_id, currency="xxx"), id=f"evt_{n}b"),
            refund(order_id, id=f"evt_{n}c"),
        )
    ]
    assert {await webhooks.handle(body) for body in bodies} == {"ignored"}
    logger.remove(sink)
    assert (await webhooks.dead_letters(), lines) == ([], [])
    counted = webhooks.harness.metrics.messages_handled.items()
    assert sum(counter.value for (_, _, outcome), counter in counted if outcome == "ignored") == len(bodies)


async def test_the_orders_of_another_installation_are_counted_ignored_and_logged_once(webhooks: WebhookHarness) -> None:
    """Two installations of this program on one account get each other's webhooks; their ids have the same form."""
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["extra"]["order_id"]), level="WARNING")
    for n, installation in (5, None), (6, "another"), (7, "ours"):
        value = intent(oid(n))
        value["metadata"] |= {} if installation is None else {"installation": installation}
        assert await webhooks.handle(event(value, id=f"evt_{n}")) == "ignored"
        assert await webhooks.handle(refund(oid(n), id=f"evt_{n}r")) == "ignored"
    logger.remove(sink)
    assert await webhooks.dead_letters() == []
    assert lines == [oid(5)]


async def test_an_order_of_this_installation_that_is_missing_is_left_to_a_person(webhooks: WebhookHarness) -> None:
    """A charge that carries our name is not another's: its payment was lost with the database, or archived."""
    webhooks.gateway.installation = "ours"
    value = intent(oid(7))
    value["metadata"] |= {"installation": "ours"}
    assert await webhooks.handle(event(value)) == "put_aside"
    assert await webhooks.dead_letters() == [("unknown_order", "evt_1")]
    assert await webhooks.handle(event(intent(oid(8)), id="evt_2")) == "ignored"


async def test_a_charge_carries_the_name_of_its_installation(webhooks: WebhookHarness, faulty: FaultyStripe) -> None:
    """So do refunds; without a name nothing is added, so that the parameters of a repeated call stay the same."""
    webhooks.gateway.installation = "ours"
    charged = await webhooks.gateway.charge("k", oid(1), EUR, ChargeDetails())
    assert isinstance(charged, Captured)
    await webhooks.gateway.refund("r", oid(1), charged.reference, EUR)
    webhooks.gateway.installation = None
    await webhooks.gateway.charge("k2", oid(2), EUR, ChargeDetails())
    found = [each["metadata"] for each in (*faulty.intents.values(), *faulty.refunds.values())]
    assert found == [
        {"order_id": oid(1), "key": "k", "installation": "ours"},
        {"order_id": oid(2), "key": "k2"},
        {"order_id": oid(1), "key": "r", "installation": "ours"},
    ]


@pytest.mark.parametrize("is_copied", [True, False])
async def test_a_webhook_that_names_only_a_charge_is_looked_up_by_it(
    webhooks: WebhookHarness, faulty: FaultyStripe, is_copied: bool
) -> None:
    """The charge names the PaymentIntent, and mostly the order, too; one that was made by hand does not belong to this installation."""
    charged = await webhooks.gateway.charge(f"charge:{oid(1)}", oid(1), EUR, ChargeDetails())
    assert isinstance(charged, Captured)
    await webhooks.request_payment(oid(1))
    await webhooks.harness.submit("payments", ChargeSucceeded(order_id=oid(1), reference=charged.reference, calls=1))
    charge = faulty.charges[faulty.intents[charged.reference]["latest_charge"]]
    if not is_copied:
        charge["metadata"] = {}
    made = refund_object("re_1", charge, 40, "succeeded", NOW, payment_intent=None)
    assert await webhooks.handle(event(made, "charge.refund.updated", "evt_1")) == "handled"
    disputed = dispute_object("dp_1", charge, "needs_response", NOW, payment_intent=None)
    assert await webhooks.handle(event(disputed, "charge.dispute.created", "evt_2")) == "handled"
    payment = await webhooks.payment(oid(1))
    assert (payment.refunded, payment.dispute) == (40, "open")
    by_hand = charge_object("ch_hand", faulty.intents[charged.reference], "succeeded", payment_intent=None)
    faulty.charges["ch_hand"] = by_hand
    for n, id in enumerate(("ch_hand", "ch_missing")):
        other = refund_object(f"re_{n}x", by_hand | {"id": id}, 40, "succeeded", NOW, payment_intent=None)
        assert await webhooks.handle(event(other, "refund.created", f"evt_{n}x")) == "ignored"
    assert await webhooks.dead_letters() == []


async def test_a_webhook_that_cannot_be_looked_up_is_not_acknowledged(webhooks: WebhookHarness, faulty: FaultyStripe) -> None:
    """Stripe repeats it. A key without the permission shows as a fault of the configuration; an open breaker is asked once."""
    body = event(refund_object("re_1", {"id": "ch_1", "currency": "eur", "payment_intent": None}, 1, "failed", NOW), "refund.failed")
    faulty.account.denied.add("charge_read")
    with pytest.raises(GatewayMisconfigured):
        await webhooks.handle(body)
    assert webhooks.look_up.problem == "misconfigured: permission_missing"
    for _ in range(30):
        with pytest.raises(GatewayNotReached):
            await webhooks.handle(body)
    assert len([call for call in faulty.calls if call[0] == "show"]) < 30


async def test_a_look_up_that_answers_with_nonsense_is_left_to_a_person(webhooks: WebhookHarness, faulty: FaultyStripe) -> None:
    """It is no 500, and Stripe does not repeat it for days."""
    faulty.intents["pi_1"] = {"id": "pi_1", "object": "another"}
    assert await webhooks.handle(refund(None)) == "put_aside"
    assert await webhooks.dead_letters() == [("nonsense", "evt_3")]


async def test_a_webhook_whose_dead_letter_was_not_stored_is_dead_lettered_when_stripe_repeats_it(
    webhooks: WebhookHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The payment is not changed by it, so only the repeated webhook shows it: it is stored once."""
    await webhooks.request_payment(oid(1))
    await webhooks.handle(event(intent(oid(1))))
    second = event(intent(oid(1), id="pi_2"), id="evt_8")
    with monkeypatch.context() as patch:
        patch.setattr(webhooks.harness.dead_letter_store, "add", _fail_to_store)
        with pytest.raises(StorageUnavailable):
            await webhooks.handle(second)
    assert [await webhooks.handle(second) for _ in range(2)] == ["put_aside", "put_aside"]
    assert await webhooks.dead_letters() == [("two_charges", "evt_8")]
    counted = webhooks.harness.metrics.messages_handled.items()
    assert sum(counter.value for (_, _, outcome), counter in counted if outcome == "put_aside") == 2


@pytest.mark.parametrize("secret", ["whsec_old", SECRET, "whsec_new"])
async def test_each_of_several_secrets_signs_webhooks(webhooks: WebhookHarness, secret: str) -> None:
    """Each endpoint that is configured at Stripe signs with a secret of its own; any other secret is refused."""
    harness = webhooks.harness
    handler = StripeWebhookHandler(
        harness.runners["payments"], f"whsec_old, {SECRET},whsec_new", None, webhooks.look_up, harness.dead_letter_store,
        harness.clock, harness.metrics, lambda: NOW,
    )  # fmt: skip
    await webhooks.request_payment(oid(1))
    body = event(intent(oid(1)))
    assert await handler.handle(body, signed(body, secret), CONTEXT) == "handled"
    with pytest.raises(InvalidSignature):
        await handler.handle(body, signed(body, "whsec_other"), CONTEXT)
    with pytest.raises(OldSignature):
        await handler.handle(body, signed(body, secret, at=NOW - 301), CONTEXT)


@pytest.mark.parametrize("secrets", ["", " , ", f"{SECRET},", f", {SECRET}"])
async def test_an_empty_secret_signs_nothing(webhooks: WebhookHarness, secrets: str) -> None:
    """Everyone knows it. Without another one webhooks are not configured."""
    harness = webhooks.harness
    handler = StripeWebhookHandler(
        harness.runners["payments"], secrets, None, webhooks.look_up, harness.dead_letter_store,
        harness.clock, harness.metrics, lambda: NOW,
    )  # fmt: skip
    assert handler.is_configured is (SECRET in secrets)
    if handler.is_configured:
        body = event(intent(oid(1)))
        with pytest.raises(InvalidSignature):
            await handler.handle(body, signed(body, ""), CONTEXT)


async def test_without_stripe_as_the_provider_a_webhook_that_names_no_order_is_ignored(webhooks: WebhookHarness) -> None:
    """There is no list of charges to look it up in; one that names an order is handled."""
    harness = webhooks.harness
    handler = StripeWebhookHandler(
        harness.runners["payments"], SECRET, None, webhooks.look_up, harness.dead_letter_store,
        harness.clock, harness.metrics, lambda: NOW,
    )  # fmt: skip
    await webhooks.request_payment(oid(1))
    outcomes = [await handler.handle(body, signed(body), CONTEXT) for body in (refund(None), event(intent(oid(1))), event(intent(oid(9)), id="evt_4"))]
    assert outcomes == ["ignored", "handled", "ignored"]


async def test_webhooks_that_are_refused_are_logged_once_an_hour(webhooks: WebhookHarness) -> None:
    """
    A missing secret or a clock that is wrong would stop all webhooks, and Stripe switches the endpoint off after days.

    A request without a signature, which anyone can send, is no sign of that.
    """
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["extra"]["detail"]), level="WARNING")
    body = event(intent(oid(1)))
    for header in None, signed(body, at=NOW - 4000), signed(body, "whsec_other"), None:
        with pytest.raises(InvalidSignature):
            await webhooks.handler.handle(body, header, CONTEXT)
    logger.remove(sink)
    assert lines == ["The signature is more than 300 seconds away from now."]


async def test_webhooks_of_other_types_are_ignored(webhooks: WebhookHarness) -> None:
    """Stripe has hundreds of types."""
    assert await webhooks.handle(event({}, "customer.created")) == "ignored"
    assert await webhooks.dead_letters() == []


async def test_a_webhook_fails_while_the_database_is_out_of_reach(webhooks: WebhookHarness) -> None:
    """No webhook is acknowledged that is not stored; Stripe repeats it."""
    await webhooks.request_payment(oid(1))
    await webhooks.harness.database.close()
    with pytest.raises(StorageUnavailable):
        await asyncio.wait_for(webhooks.handle(event(intent(oid(1)))), 10)
