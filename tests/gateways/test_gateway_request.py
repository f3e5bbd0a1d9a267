"""Charge and refund requests: what is known before the provider is called, and the ids of the results."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from app.gateways.gateway_request import ChargeAttempt, GatewayRequest, result_id
from app.gateways.payment_worker import CONSUMER
from modules.payments.events import (
    ChargeDeclined,
    ChargeFailed,
    ChargeMismatch,
    ChargeRequested,
    ChargeSucceeded,
    RefundFailed,
    RefundRequested,
    RefundSucceeded,
)
from modules.payments.state import Payment, PaymentStatus
from modules.values import Money
from tests.runtime.harness import CONTEXT

REQUEST_ID = "0199fe00-0000-8000-8000-000000000001"
EUR = Money(100, "EUR")
CHARGE = ChargeRequested(order_id="o", amount=EUR, attempt=1, is_wanted=True)
REFUND = RefundRequested(order_id="o", amount=EUR, reference="r", attempt=1)


def request(event: Any = CHARGE, *, is_first_call: bool = True, may_be_repeat: bool = False) -> GatewayRequest:
    return GatewayRequest(
        event, REQUEST_ID, CONTEXT, is_express=False, is_first_call=is_first_call, needs_recheck=True, may_be_repeat=may_be_repeat
    )


def payment(status: PaymentStatus = PaymentStatus.PENDING, **changes: Any) -> Payment:
    fields: dict[str, Any] = {"order_id": "o", "amount": 100, "currency": "EUR", "attempts": 1, "updated_at": datetime(2026, 1, 1, tzinfo=UTC)}
    return Payment(status=status, **(fields | changes))


def rechecked(stored: Payment | None, *, is_first_call: bool = True) -> tuple[bool, bool, bool, bool]:
    """Return what an attempt knows after a recheck: should_charge, is_first_call, is_answered, is_withdrawn."""
    attempt = ChargeAttempt(request(is_first_call=is_first_call))
    attempt.recheck(stored)
    return attempt.should_charge, attempt.is_first_call, attempt.is_answered, attempt.is_withdrawn


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (ChargeSucceeded(order_id="o", reference="r", calls=1), "0199fe00-0000-86e8-9a27-3f9453d45784"),
        (ChargeDeclined(order_id="o", reason="x", calls=1), "0199fe00-0000-8e98-8fbb-40df6521de41"),
        (ChargeFailed(order_id="o", is_unknown=True, retry_seconds=1, calls=1), "0199fe00-0000-8ead-b917-f4e4ecc5abfa"),
        (ChargeFailed(order_id="o", is_unknown=False, retry_seconds=1, calls=0), "0199fe00-0000-8bba-b8e5-fd7797a7b3ac"),
        (ChargeMismatch(order_id="o", reason="x", reference=None, calls=1), "0199fe00-0000-8078-b8a7-f13998faffcc"),
        (RefundSucceeded(order_id="o", reference="r"), "0199fe00-0000-8937-8521-fe554281525a"),
        (RefundFailed(order_id="o", retry_seconds=1), "0199fe00-0000-8b62-a579-dbe404f59936"),
    ],
)
def test_the_id_of_a_result_is_the_same_as_in_older_versions(result: Any, expected: str) -> None:
    """A result that a worker of an older version has submitted is recognised as a duplicate during an upgrade."""
    assert result_id(REQUEST_ID, CONSUMER, result) == expected


def test_a_payment_without_a_call_is_charged_without_a_look_up() -> None:
    """The stored payment counts every call whose result was submitted."""
    assert rechecked(payment()) == (True, True, False, False)


@pytest.mark.parametrize("stored", [payment(calls=1), payment(PaymentStatus.UNKNOWN, calls=1)])
def test_a_payment_with_a_call_is_looked_up_before_it_is_charged(stored: Payment) -> None:
    """An earlier call may have taken the money."""
    assert rechecked(stored) == (True, False, False, False)


def test_a_recheck_never_makes_an_attempt_the_first_one() -> None:
    """An earlier worker may have called the provider without submitting the result."""
    assert rechecked(payment(), is_first_call=False) == (True, False, False, False)


@pytest.mark.parametrize(
    "stored",
    [
        payment(is_cancelled=True),
        payment(PaymentStatus.DECLINED),
        payment(PaymentStatus.UNKNOWN, reason="wrong_amount"),
        payment(PaymentStatus.CAPTURED, reference="r"),
    ],
)
def test_a_payment_that_is_cancelled_or_settled_or_under_review_is_not_charged(stored: Payment) -> None:
    """Without an earlier call the request is withdrawn, and the provider is not called at all."""
    assert rechecked(stored) == (False, True, False, True)


def test_a_request_without_a_payment_is_looked_up_and_not_charged() -> None:
    """Nothing is known about earlier calls then."""
    assert rechecked(None) == (False, False, False, False)


def test_a_request_whose_result_is_stored_is_answered() -> None:
    """The payment has counted a later attempt, whose request follows."""
    assert rechecked(payment(attempts=2, calls=1)) == (True, False, True, False)


@pytest.mark.parametrize("may_be_repeat", [True, False])
def test_a_charge_that_was_not_sent_is_unknown_only_if_it_may_be_a_repeat(may_be_repeat: bool) -> None:
    """A worker that was killed may have sent it; no call is counted for this one."""
    expected = ChargeFailed(order_id="o", is_unknown=may_be_repeat, retry_seconds=2.0, calls=0)
    assert request(may_be_repeat=may_be_repeat).not_sent(2.0) == expected


def test_a_refund_that_was_not_sent_counts_no_call() -> None:
    """It is requested again later."""
    assert request(REFUND).not_sent(2.0) == RefundFailed(order_id="o", retry_seconds=2.0, calls=0)
