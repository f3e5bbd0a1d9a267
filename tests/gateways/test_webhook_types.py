"""Stripe's webhooks, whole as its documentation prints them: what each type means for the payment of an order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.gateways.port import ChargeDetails, ChargeOwner
from app.gateways.stripe.gateway import StripeGateway
from app.gateways.stripe.webhook_event import HANDLED_TYPES, Notice, StripeEvent, parse_event
from modules.payments.events import ChargeNotified, DeclineNotified, DisputeReported, RefundNotified, RefundReported
from modules.values import Money
from tests.gateways.fault import FaultyStripe
from tests.gateways.local import API_KEY
from tests.gateways.stripe_payloads import (
    charge_object,
    dispute_object,
    event_object,
    intent_object,
    refund_object,
)

ORDER = "019a0000-0000-7000-8000-000000000001"
EUR = Money(1250, "EUR")
NOW = 1_800_000_000
INTENT = intent_object("pi_1", 1250, "eur", "succeeded", NOW, metadata={"order_id": ORDER, "key": f"charge:{ORDER}"})
CHARGE = charge_object("ch_1", INTENT, "succeeded")
OURS = {"order_id": ORDER, "key": f"refund:{ORDER}"}


def parsed(type: str, value: dict[str, Any], **changes: Any) -> StripeEvent:
    return parse_event(orjson.dumps(event_object("evt_1", type, value, NOW, **changes)))


def refund(status: str, **changes: Any) -> dict[str, Any]:
    return refund_object("re_1", CHARGE, 400, status, NOW, **{"metadata": OURS, **changes})


def reported(status: str, key_number: int | None = 1, reason: str | None = None) -> RefundReported:
    return RefundReported(
        order_id=ORDER,
        reference="pi_1",
        refund_reference="re_1",
        amount=Money(400, "EUR"),
        status=status,
        key_number=key_number,
        reason=reason,
    )


def disputed(status: str) -> DisputeReported:
    return DisputeReported(order_id=ORDER, reference="pi_1", dispute_reference="dp_1", amount=EUR, status=status)


@pytest.mark.parametrize("type_", ["refund.created", "refund.updated", "refund.failed", "charge.refund.updated"])
@pytest.mark.parametrize(
    ("value", "notice"),
    [
        (refund("pending"), reported("pending")),
        (refund("requires_action"), reported("pending")),
        (refund("succeeded"), reported("succeeded")),
        (refund("failed", failure_reason="lost_or_stolen_card"), reported("failed", reason="lost_or_stolen_card")),
        (refund("canceled"), reported("failed", reason="canceled")),
        (refund("pending", metadata={"order_id": ORDER, "key": f"refund:{ORDER}:3"}), reported("pending", 3)),
        (refund("pending", payment_intent=INTENT), reported("pending")),
    ],
    ids=["pending", "requires_action", "succeeded", "failed", "canceled", "third key", "expanded"],
)
def test_a_refund_is_reported(type_: str, value: dict[str, Any], notice: RefundReported) -> None:
    """Under every type that carries a refund, with the number of the key that made it."""
    assert parsed(type_, value).notice == notice


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("warning_needs_response", "open"),
        ("warning_under_review", "open"),
        ("warning_closed", "won"),
        ("needs_response", "open"),
        ("under_review", "open"),
        ("appeal_needs_response", "open"),
        ("prevented", "won"),
        ("won", "won"),
        ("lost", "lost"),
        ("a_new_status", "open"),
    ],
)
def test_a_dispute_is_reported_for_the_order_of_its_charge(status: str, expected: str) -> None:
    """A dispute names no order; its PaymentIntent does."""
    for step in "created", "updated", "funds_withdrawn", "funds_reinstated", "closed":
        event = parsed(f"charge.dispute.{step}", dispute_object("dp_1", CHARGE, status, NOW))
        assert event.needs_order
        assert event.reference == "pi_1"
        assert event.for_owner(ChargeOwner("pi_1", ORDER)).notice == disputed(expected)
        for owner in ChargeOwner("pi_1", "another shop's"), ChargeOwner("pi_1", None), None:
            assert event.for_owner(owner).mismatch == "unknown_intent"


def test_a_refund_in_the_dashboard_is_reported_for_the_order_of_its_charge() -> None:
    """It has no metadata, and was made under no key of ours."""
    event = parsed("refund.created", refund("succeeded", metadata={}))
    assert event.needs_order
    assert event.for_owner(ChargeOwner("pi_1", ORDER)).notice == reported("succeeded", None)


@pytest.mark.parametrize(
    ("type_", "value", "notice"),
    [
        ("charge.refund.updated", refund("failed", metadata={}), reported("failed", None, "failed")),
        ("charge.dispute.created", dispute_object("dp_1", CHARGE, "needs_response", NOW), disputed("open")),
    ],
)
def test_what_names_only_a_charge_is_looked_up_by_it(type_: str, value: dict[str, Any], notice: Notice) -> None:
    """As old versions of the API send it; where the charge is expanded, it names the PaymentIntent."""
    event = parsed(type_, value | {"payment_intent": None})
    assert (event.needs_order, event.reference) == (True, "ch_1")
    assert event.for_owner(ChargeOwner("pi_1", ORDER)).notice == notice
    assert parsed(type_, value | {"payment_intent": None, "charge": CHARGE}).reference == "pi_1"
    without = {name: member for name, member in value.items() if name not in ("payment_intent", "charge")}
    assert parsed(type_, without).mismatch == "unknown_intent"


def test_a_refund_of_ours_that_names_only_its_charge_is_looked_up() -> None:
    """Its metadata name the order, and not the PaymentIntent that the payment is compared with."""
    event = parsed("refund.updated", refund("succeeded", payment_intent=None))
    assert (event.needs_order, event.reference) == (True, "ch_1")


def test_a_thin_event_is_one_of_another_type() -> None:
    """Stripe's newer API sends the id of an object instead of the object (https://docs.stripe.com/event-destinations)."""
    event = {
        "id": "evt_test_65R9Ijk8dKEYZcXeRWn16R9A7j1FSQ3w3TGDPLLGSM4CW0",
        "object": "v2.core.event",
        "type": "v1.billing.meter.error_report_triggered",
        "created": "2026-09-17T06:20:52.246Z",
        "livemode": False,
        "reason": None,
        "context": None,
        "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
    }
    assert parse_event(orjson.dumps(event)).is_handled is False


def test_a_charge_that_was_refunded_is_reported() -> None:
    """With what was refunded altogether."""
    notice = RefundNotified(order_id=ORDER, reference="pi_1", amount=EUR, refunded_amount=400)
    assert parsed("charge.refunded", CHARGE | {"amount_refunded": 400}).notice == notice


@pytest.mark.parametrize("decline", ["try_again_later", "lost_card"])
def test_a_declined_card_is_reported(decline: str) -> None:
    """amount_received is 0 then; the code shows whether the decline is soft."""
    error = {"type": "card_error", "code": "card_declined", "decline_code": decline}
    value = INTENT | {"status": "requires_payment_method", "amount_received": 0, "last_payment_error": error}
    notice = parsed("payment_intent.payment_failed", value).notice
    assert notice == DeclineNotified(
        order_id=ORDER, reference="pi_1", amount=EUR, reason=decline, is_soft=decline == "try_again_later"
    )


def test_a_captured_charge_is_reported_whatever_the_version_of_the_api() -> None:
    """An older version has other members beside those that count."""
    older = {name: value for name, value in INTENT.items() if name not in ("latest_charge", "payment_method_options")}
    notice = ChargeNotified(order_id=ORDER, reference="pi_1", amount=EUR)
    for value in INTENT, older | {"charges": {"object": "list", "data": [CHARGE]}}:
        assert parsed("payment_intent.succeeded", value, api_version="2019-05-16").notice == notice


@pytest.mark.parametrize(
    "type_",
    [
        *("payment_intent.amount_capturable_updated", "payment_intent.canceled", "payment_intent.created"),
        *("payment_intent.partially_funded", "payment_intent.processing", "payment_intent.requires_action"),
        *("charge.captured", "charge.expired", "charge.failed", "charge.pending", "charge.succeeded", "charge.updated"),
        "customer.created",
    ],
)
def test_other_types_are_ignored(type_: str) -> None:
    """They contain nothing that those above do not contain."""
    assert parsed(type_, INTENT).is_handled is False


LONG = st.integers(-(2**63), 2**63 - 1)

VALUES: list[Callable[[], dict[str, Any]]] = [
    lambda: INTENT,
    lambda: CHARGE,
    lambda: refund("pending"),
    lambda: dispute_object("dp_1", CHARGE, "lost", NOW),
]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    type_=st.sampled_from(HANDLED_TYPES),
    value=st.sampled_from(VALUES).map(lambda make: make()),
    data=st.data(),
)
def test_a_payload_with_members_missing_or_wrong_is_no_crash(type_: str, value: dict[str, Any], data: st.DataObject) -> None:
    """It is a mismatch, or the notice that its other members make."""
    names = sorted(value)
    missing = data.draw(st.sets(st.sampled_from(names), max_size=len(names)))
    values = st.none() | LONG | st.text(max_size=20) | st.lists(st.none(), max_size=2)
    wrong = data.draw(st.dictionaries(st.sampled_from(names), values, max_size=4))
    event = parsed(type_, {name: member for name, member in value.items() if name not in missing} | wrong)
    assert event.notice is not None or event.mismatch in ("nonsense", "wrong_id", "unknown_intent") or event.needs_order


def test_a_refund_without_a_status_that_is_a_text_is_nonsense() -> None:
    """A JSON array or object is no key of a table, and must not raise."""
    statuses: list[Any] = [[], {}, None, 1]
    for status in statuses:
        assert parsed("refund.updated", refund("pending") | {"status": status}).mismatch == "nonsense"


async def test_every_event_of_the_provider_of_the_tests_is_understood(faulty: FaultyStripe) -> None:
    """Charges, declines, refunds that fail, and disputes that are lost: nothing that it sends is nonsense."""
    gateway = StripeGateway(API_KEY, faulty.url)
    faulty.refund_status = lambda: "pending"
    for method in "pm_card_visa", "pm_declined", "pm_try_again_later", "pm_card_createDispute", "pm_3ds":
        await gateway.charge(method, ORDER, EUR, ChargeDetails(method))
    reference = next(iter(faulty.intents))
    await gateway.refund("refund", ORDER, reference, Money(400, "EUR"))
    faulty.settle_refund(next(iter(faulty.refunds)), "failed")
    faulty.close_dispute(next(iter(faulty.disputes)), "lost")
    await gateway.close()
    events = [parse_event(orjson.dumps(event)) for event in faulty.events]
    assert {event.mismatch for event in events} == {None}
    handled = {event.type for event in events if event.is_handled}
    assert handled == set(HANDLED_TYPES) - {"charge.dispute.funds_reinstated"}
