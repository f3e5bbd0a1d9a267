"""What follows from what, for an order's money: given, when, then."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from modules.inventory.events import StockReserved
from modules.module import Decision, Later, Unexpected, Withdraw
from modules.orders.events import OrderCancelled
from modules.payments.decide import decide
from modules.payments.events import (
    Charged,
    ChargeFailed,
    ChargeRefused,
    ChargeRequested,
    PaymentCaptured,
    PaymentDeclined,
    PaymentDelayed,
    PaymentRefunded,
    Refunded,
    RefundFailed,
    RefundRequested,
)
from modules.payments.state import Payment, PaymentStatus
from modules.values import Money
from tests.modules.saga import NOW

EUR = Money(250, "EUR")
RESERVED = StockReserved(order_id="o", lines=(), total=EUR, payment_method="pm")
CANCELLED = OrderCancelled(order_id="o", customer_id="c", items=(), reason="requested")
CHARGED = Charged(order_id="o", reference="r", calls=1)
REFUSED = ChargeRefused(order_id="o", reason="no_funds", calls=1)
AWAY = ChargeFailed(order_id="o", is_unknown=False, retry_seconds=2, calls=1)
SILENT = ChargeFailed(order_id="o", is_unknown=True, retry_seconds=2, calls=1)
REFUNDED = Refunded(order_id="o", reference="b")
REFUND_FAILED = RefundFailed(order_id="o", retry_seconds=3)
CAPTURED = PaymentCaptured(order_id="o", amount=EUR, reference="r")
ASK_BACK = RefundRequested(order_id="o", amount=EUR, reference="r", attempt=1)
IN_TWO_SECONDS = NOW + timedelta(seconds=2)


def when(payment: Payment | None, event: Any) -> Decision:
    return decide((payment,), event, NOW)


def given(*events: Any) -> Payment:
    """Return the payment after *events*."""
    payment: Payment | None = None
    for event in events:
        decision = when(payment, event)
        payment = decision.states[0] if decision.states else payment
    assert payment is not None
    return payment


def ask(attempt: int, is_wanted: bool = True) -> ChargeRequested:
    return ChargeRequested(order_id="o", amount=EUR, attempt=attempt, is_wanted=is_wanted, payment_method="pm")


def test_held_stock_is_paid_for() -> None:
    """The gateway is asked once."""
    decision = when(None, RESERVED)
    assert decision.states[0].status is PaymentStatus.PENDING
    assert decision.events == (ask(1),)
    assert when(given(RESERVED), RESERVED) == Decision()


def test_charged_is_captured() -> None:
    """With the gateway's reference, and the calls that it took."""
    decision = when(given(RESERVED, AWAY), CHARGED)
    [payment] = decision.states
    assert (payment.status, payment.reference, payment.calls, payment.is_waiting) == (PaymentStatus.CAPTURED, "r", 2, False)
    assert decision.events == (CAPTURED,)


def test_refused_is_declined() -> None:
    """And says why."""
    decision = when(given(RESERVED), REFUSED)
    assert decision.states[0].status is PaymentStatus.DECLINED
    assert decision.events == (PaymentDeclined(order_id="o", amount=EUR, reason="no_funds"),)


@pytest.mark.parametrize(("failure", "status"), [(AWAY, PaymentStatus.PENDING), (SILENT, PaymentStatus.UNKNOWN)])
def test_no_answer_is_asked_for_again(failure: ChargeFailed, status: PaymentStatus) -> None:
    """Later, by the outbox; the order hears of the first delay only. Unknown is neither success nor failure."""
    decision = when(given(RESERVED), failure)
    assert (decision.states[0].status, decision.states[0].is_waiting) == (status, True)
    assert decision.events == (Later(ask(2), IN_TWO_SECONDS, "charge:o"), PaymentDelayed(order_id="o"))
    decision = when(decision.states[0], AWAY)
    assert decision.states[0].status is status
    assert decision.events == (Later(ask(3), IN_TWO_SECONDS, "charge:o"),)


def test_cancelled_before_it_was_asked_for_nothing_is_charged() -> None:
    """A tombstone: the reservation that comes later is not paid for."""
    decision = when(None, CANCELLED)
    assert decision.states[0].status is PaymentStatus.DECLINED
    assert decision.events == ()
    assert when(decision.states[0], RESERVED) == Decision()
    assert when(decision.states[0], CANCELLED).events == ()


def test_captured_then_cancelled_is_refunded_once() -> None:
    """Though it is heard twice."""
    decision = when(given(RESERVED, CHARGED), CANCELLED)
    assert decision.events == (ASK_BACK,)
    assert when(decision.states[0], CANCELLED).events == ()
    refunded = when(decision.states[0], REFUNDED)
    assert refunded.states[0].status is PaymentStatus.REFUNDED
    assert refunded.events == (PaymentRefunded(order_id="o", amount=EUR, reference="b"),)
    assert when(refunded.states[0], REFUNDED) == Decision()


def test_money_that_turns_up_after_the_cancellation_goes_back() -> None:
    """And the order never hears that it came."""
    assert when(given(RESERVED, CANCELLED), CHARGED).events == (ASK_BACK,)
    assert when(given(RESERVED, CANCELLED, REFUSED), CHARGED).events == (ASK_BACK,)


def test_a_refusal_after_the_cancellation_is_the_end() -> None:
    """Nobody waits for it any more."""
    decision = when(given(RESERVED, CANCELLED), REFUSED)
    assert (decision.states[0].status, decision.events) == (PaymentStatus.DECLINED, ())


def test_cancelled_while_the_next_attempt_waits_it_is_withdrawn() -> None:
    """The gateway has certainly seen nothing: that is the end."""
    decision = when(given(RESERVED, AWAY), CANCELLED)
    assert decision.states[0].status is PaymentStatus.DECLINED
    assert decision.events == (Withdraw("charge:o"),)


def test_cancelled_while_unknown_it_is_looked_up_and_not_charged() -> None:
    """Now, and not when the next attempt would have been due."""
    decision = when(given(RESERVED, SILENT), CANCELLED)
    assert decision.states[0].status is PaymentStatus.UNKNOWN
    assert decision.events == (Withdraw("charge:o"), ask(2, is_wanted=False))
    again = when(decision.states[0], AWAY)
    assert again.events == (Later(ask(3, is_wanted=False), IN_TWO_SECONDS, "charge:o"),)


def test_an_attempt_that_could_not_be_withdrawn_any_more_is_looked_up() -> None:
    """It was on its way when the order was cancelled, and brought no answer: it may have taken the money."""
    given_up = given(RESERVED, AWAY, CANCELLED)
    assert given_up.status is PaymentStatus.DECLINED
    decision = when(given_up, SILENT)
    assert decision.states[0].status is PaymentStatus.UNKNOWN
    assert decision.events == (Later(ask(3, is_wanted=False), IN_TWO_SECONDS, "charge:o"),)
    assert when(given_up, AWAY) == Decision()


def test_cancelled_while_the_call_is_out_the_answer_decides() -> None:
    """That it did not arrive is the end; that nobody knows is not."""
    out = given(RESERVED, CANCELLED)
    ended = when(out, AWAY)
    assert (ended.states[0].status, ended.events) == (PaymentStatus.DECLINED, ())
    assert when(out, SILENT).events == (Later(ask(2, is_wanted=False), IN_TWO_SECONDS, "charge:o"),)


def test_a_refund_is_asked_for_again() -> None:
    """Until it is answered."""
    decision = when(given(RESERVED, CHARGED, CANCELLED), REFUND_FAILED)
    assert decision.states[0].status is PaymentStatus.CAPTURED
    assert decision.events == (Later(evolve(ASK_BACK, attempt=2), NOW + timedelta(seconds=3)),)
    assert when(given(RESERVED, CHARGED, CANCELLED, REFUNDED), REFUND_FAILED) == Decision()


@pytest.mark.parametrize("event", [CHARGED, REFUSED, AWAY, SILENT], ids=["charged", "refused", "away", "silent"])
def test_answers_to_what_is_settled_change_nothing(event: Any) -> None:
    """An earlier attempt's, that came late."""
    assert when(given(RESERVED, CHARGED), event) == Decision()
    assert when(given(RESERVED, CHARGED, CANCELLED, REFUNDED), event) == Decision()


@pytest.mark.parametrize("event", [CHARGED, REFUSED, SILENT, REFUNDED], ids=lambda e: type(e).__name__)
def test_answers_that_nobody_asked_for_are_unexpected(event: Any) -> None:
    """A person has to look at them."""
    with pytest.raises(Unexpected):
        when(None, event)
    if event is REFUNDED:
        with pytest.raises(Unexpected):
            when(given(RESERVED), event)
