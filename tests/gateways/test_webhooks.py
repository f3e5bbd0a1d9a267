"""Stripe's webhooks: who says it, whether it fits, and that it counts once."""

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

from app.gateways.stripe.gateway import StripeGateway
from app.gateways.stripe.webhook_event import TOLERANCE_SECONDS, InvalidSignature, check_signature, parse_event
from app.gateways.webhook_handler import CONSUMER, StripeWebhookHandler
from app.storage.errors import StorageUnavailable
from modules.inventory.events import StockReserved
from modules.orders.events import OrderCancelled
from modules.payments.events import ChargeSucceeded
from modules.payments.state import Payment, PaymentStatus
from modules.values import Money
from tests.gateways.fault import FaultyStripe
from tests.gateways.local import API_KEY
from tests.runtime.harness import CONTEXT, Harness, harness_at, oid

SECRET = "whsec_test"
NOW = 1_800_000_000
EUR = Money(100, "EUR")


def signed(body: bytes, secret: str = SECRET, at: int = NOW) -> str:
    """Return the header as Stripe makes it."""
    return f"t={at},v1={digest(body, secret, at)}"


def digest(body: bytes, secret: str = SECRET, at: int = NOW) -> str:
    return hmac.new(secret.encode(), b"%d." % at + body, sha256).hexdigest()


def intent(order_id: str | None, **changes: Any) -> dict[str, Any]:
    metadata = {} if order_id is None else {"order_id": order_id}
    found = {"object": "payment_intent", "id": "pi_1", "amount": 100, "currency": "eur", "status": "succeeded"}
    return found | {"metadata": metadata} | changes


def event(about: dict[str, Any], type_: str = "payment_intent.succeeded", id: str = "evt_1") -> bytes:
    return json.dumps({"object": "event", "id": id, "type": type_, "data": {"object": about}}).encode()


def failed(order_id: str) -> bytes:
    about = intent(order_id, status="requires_payment_method", last_payment_error={"code": "card_declined"})
    return event(about, "payment_intent.payment_failed", "evt_2")


def refund(order_id: str | None, refunded: int = 100, id: str = "evt_3") -> bytes:
    metadata = {} if order_id is None else {"order_id": order_id}
    about = {"object": "charge", "id": "ch_1", "payment_intent": "pi_1", "amount": 100, "currency": "eur"}
    return event(about | {"amount_refunded": refunded, "metadata": metadata}, "charge.refunded", id)


@define
class Desk:
    """Webhooks at a stand whose payments run."""

    harness: Harness
    webhooks: StripeWebhookHandler

    async def take(self, body: bytes) -> str:
        return await self.webhooks.handle(body, signed(body), CONTEXT)

    async def requested(self, order_id: str) -> None:
        """Let the payment of an order be asked for."""
        reserved = StockReserved(order_id=order_id, lines=(), total=EUR, payment_method=None)
        await self.harness.submit("payments", reserved)

    async def payment(self, order_id: str) -> Payment:
        found = await self.harness.runners["payments"].get(Payment, order_id)
        assert isinstance(found, Payment)
        return found

    async def said(self, subject: str) -> int:
        sql = "SELECT count(*) FROM payments_outbox WHERE subject = ?"
        count: int = (await self.harness.rows(sql, f"payments.{subject}.v1"))[0][0]
        return count

    async def letters(self) -> list[tuple[str, str]]:
        kept = await self.harness.dead_letter_store.list(CONSUMER, None, None, 100)
        return [(each.dead_letter.error, each.dead_letter.message.id) for each in kept]


async def _cut_off(dead_letter: Any) -> None:
    raise StorageUnavailable("The process ends here, or its database goes away.")


@pytest.fixture
async def service(tmp_path: Path, faulty: FaultyStripe) -> AsyncIterator[Desk]:
    gateway = StripeGateway(API_KEY, faulty.url)
    async with harness_at(tmp_path / "test.db") as harness:
        runner = harness.runners["payments"]
        harness.run(runner.run())
        yield Desk(harness, StripeWebhookHandler(runner, SECRET, gateway, harness.dead_letter_store, harness.clock, harness.metrics, lambda: NOW))
    await gateway.close()


# Signatures


def test_a_signature_over_the_raw_body_is_right() -> None:
    """Also beside others: while a secret is being rolled there are two, and other schemes are none of our business."""
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
def test_any_other_is_wrong(header: str | None) -> None:
    """Whatever it is, it is refused and nothing breaks."""
    with pytest.raises(InvalidSignature):
        check_signature(b"x", header, SECRET, NOW)


@pytest.mark.parametrize(("age", "is_right"), [(0, True), (300, True), (301, False), (-300, True), (-301, False)])
def test_a_signature_has_its_time(age: int, is_right: bool) -> None:
    """Five minutes: whoever has recorded a webhook cannot bring it again later."""
    assert TOLERANCE_SECONDS == 300
    header = signed(b"x", at=NOW - age)
    if is_right:
        check_signature(b"x", header, SECRET, NOW)
    else:
        with pytest.raises(InvalidSignature):
            check_signature(b"x", header, SECRET, NOW)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"object":"event","id":"x","type":"y"}', b"\xff", b'{"id":1}'])
def test_what_is_no_event_is_none(body: bytes) -> None:
    """Though it is signed."""
    with pytest.raises(ValueError):  # noqa: PT011  # of any kind
        parse_event(body)


# What becomes of them


async def test_the_webhook_may_come_before_the_answer(service: Desk) -> None:
    """Then the order is paid, and the answer that comes later is old news."""
    await service.requested(oid(1))
    assert await service.take(event(intent(oid(1)))) == "handled"
    payment = await service.payment(oid(1))
    assert (payment.status, payment.reference, payment.calls) == (PaymentStatus.CAPTURED, "pi_1", 0)
    await service.harness.submit("payments", ChargeSucceeded(order_id=oid(1), reference="pi_1", calls=1))
    assert await service.said("captured") == 1


async def test_the_webhook_may_come_after_the_answer(service: Desk) -> None:
    """It fits, and changes nothing."""
    await service.requested(oid(1))
    await service.harness.submit("payments", ChargeSucceeded(order_id=oid(1), reference="pi_1", calls=1))
    assert await service.take(event(intent(oid(1)))) == "handled"
    assert await service.said("captured") == 1
    assert await service.letters() == []


async def test_the_same_event_counts_once(service: Desk) -> None:
    """Stripe sends until it has heard a 2xx; twenty copies at once are one."""
    await service.requested(oid(1))
    outcomes = await asyncio.gather(*(service.take(event(intent(oid(1)))) for _ in range(20)))
    assert sorted(outcomes) == ["handled"] + ["repeated"] * 19
    assert await service.said("captured") == 1


async def test_a_failure_and_a_refund_are_heard_too(service: Desk) -> None:
    """A refusal declines; a refund of a cancelled order is the refund."""
    await service.requested(oid(1))
    assert await service.take(failed(oid(1))) == "handled"
    payment = await service.payment(oid(1))
    assert (payment.status, payment.reason) == (PaymentStatus.DECLINED, "card_declined")
    await service.requested(oid(2))
    await service.take(event(intent(oid(2)), id="evt_9"))
    off = OrderCancelled(order_id=oid(2), customer_id="c", items=(), reason="requested")
    await service.harness.submit("payments", off)
    assert await service.take(refund(oid(2))) == "handled"
    assert (await service.payment(oid(2))).status is PaymentStatus.REFUNDED
    assert await service.letters() == []


async def test_a_refund_whose_charge_names_no_order_is_looked_up(service: Desk, faulty: FaultyStripe) -> None:
    """Its PaymentIntent knows the order."""
    await service.requested(oid(1))
    await service.take(event(intent(oid(1))))
    await service.harness.submit("payments", OrderCancelled(order_id=oid(1), customer_id="c", items=(), reason="requested"))
    faulty.intents["pi_1"] = intent(oid(1))
    assert await service.take(refund(None)) == "handled"
    assert (await service.payment(oid(1))).status is PaymentStatus.REFUNDED


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (event(intent(oid(7))), "unknown_order"),
        (event(intent(None)), "unknown_intent"),
        (event(intent("'; DROP TABLE orders")), "unknown_intent"),
        (event(intent(oid(1), amount=101)), "wrong_amount"),
        (event(intent(oid(1), currency="usd")), "wrong_currency"),
        (event(intent(oid(1), status="processing")), "nonsense"),
        (event(intent(oid(1), amount_received=1)), "nonsense"),
        (event(intent(oid(1), id="another")), "wrong_id"),
        (event({"object": "charge"}), "nonsense"),
        (refund(oid(1)), "not_captured"),
        (refund(None), "unknown_intent"),
        (event({"object": "charge"}, "charge.refunded"), "nonsense"),
    ],
)
async def test_what_does_not_fit_is_put_aside_once(service: Desk, body: bytes, error: str) -> None:
    """A dead letter for a person, and a 2xx for Stripe, which could do nothing about it."""
    await service.requested(oid(1))
    assert [await service.take(body), await service.take(body)] == ["put_aside"] * 2
    [(found, message_id)] = await service.letters()
    assert (found, message_id[:4]) == (error, "evt_")
    assert (await service.payment(oid(1))).status is PaymentStatus.PENDING


async def test_a_second_charge_for_an_order_is_put_aside(service: Desk) -> None:
    """Somebody was charged twice: nobody decides about that alone."""
    await service.requested(oid(1))
    await service.take(event(intent(oid(1))))
    assert await service.take(event(intent(oid(1), id="pi_2"), id="evt_8")) == "put_aside"
    assert await service.letters() == [("two_charges", "evt_8")]
    assert (await service.payment(oid(1))).reference == "pi_1"


async def test_money_that_went_back_by_hand_is_put_aside_and_counts(service: Desk) -> None:
    """Our books follow the provider's, and a person hears of it."""
    await service.requested(oid(1))
    await service.take(event(intent(oid(1))))
    assert await service.take(refund(oid(1))) == "put_aside"
    assert await service.letters() == [("refunded_elsewhere", "evt_3")]
    assert (await service.payment(oid(1))).status is PaymentStatus.REFUNDED


async def test_a_webhook_that_was_cut_off_between_books_and_letter_is_put_aside_when_it_comes_again(
    service: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refund by hand is in our books then; the person has not heard of it yet, and hears of it once."""
    await service.requested(oid(1))
    await service.take(event(intent(oid(1))))
    with monkeypatch.context() as patch:
        patch.setattr(service.harness.dead_letter_store, "add", _cut_off)
        with pytest.raises(StorageUnavailable):
            await service.take(refund(oid(1)))
    assert (await service.payment(oid(1))).status is PaymentStatus.REFUNDED
    assert [await service.take(refund(oid(1))) for _ in range(2)] == ["put_aside", "put_aside"]
    assert await service.letters() == [("refunded_elsewhere", "evt_3")]


async def test_other_types_are_none_of_our_business(service: Desk) -> None:
    """Stripe has hundreds."""
    assert await service.take(event({}, "customer.created")) == "ignored"
    assert await service.letters() == []


async def test_without_the_database_there_is_no_answer(service: Desk) -> None:
    """Stripe comes again; nothing is said to be here that is not."""
    await service.requested(oid(1))
    await service.harness.database.close()
    with pytest.raises(StorageUnavailable):
        await asyncio.wait_for(service.take(event(intent(oid(1)))), 10)
