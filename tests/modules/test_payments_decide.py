"""What follows from what, for an order's money: given, when, then."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from modules.inventory.events import StockReserved
from modules.module import CancelTimer, Decision, Scheduled, Unexpected
from modules.orders.events import OrderCancelled
from modules.payments.decide import decide
from modules.payments.events import (
    ChargeDeclined,
    ChargeDelayed,
    ChargeFailed,
    ChargeMismatch,
    ChargeNotified,
    ChargeRequested,
    ChargeSucceeded,
    DeclineNotified,
    NoticeRejected,
    PaymentCaptured,
    PaymentDeclined,
    PaymentDelayed,
    PaymentRefunded,
    PaymentReviewRequired,
    RefundFailed,
    RefundNotified,
    RefundRequested,
    RefundSucceeded,
)
from modules.payments.state import Payment, PaymentStatus
from modules.values import Money
from tests.modules.saga import NOW

EUR = Money(250, "EUR")
RESERVED = StockReserved(order_id="o", lines=(), total=EUR, payment_method="pm")
CANCELLED = OrderCancelled(order_id="o", customer_id="c", items=(), reason="requested")
CHARGED = ChargeSucceeded(order_id="o", reference="r", calls=1)
REFUSED = ChargeDeclined(order_id="o", reason="no_funds", calls=1)
AWAY = ChargeFailed(order_id="o", is_unknown=False, retry_seconds=2, calls=1)
SILENT = ChargeFailed(order_id="o", is_unknown=True, retry_seconds=2, calls=1)
REFUNDED = RefundSucceeded(order_id="o", reference="b")
REFUND_FAILED = RefundFailed(order_id="o", retry_seconds=3)
CAPTURED = PaymentCaptured(order_id="o", amount=EUR, reference="r")
WRONG = ChargeMismatch(order_id="o", reason="wrong_amount", reference="w", calls=1)
SEEN = ChargeNotified(order_id="o", reference="r", amount=EUR)
REFUSAL_SEEN = DeclineNotified(order_id="o", reference="r", amount=EUR, reason="no_funds")
REFUND_SEEN = RefundNotified(order_id="o", reference="r", amount=EUR, refunded_amount=250)
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


def ask_back(attempt: int = 1, reference: str = "r") -> RefundRequested:
    return RefundRequested(order_id="o", amount=EUR, reference=reference, attempt=attempt)


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
    assert decision.events == (Scheduled(ask(2), IN_TWO_SECONDS, "charge:o"), PaymentDelayed(order_id="o"))
    decision = when(decision.states[0], AWAY)
    assert decision.states[0].status is status
    assert decision.events == (Scheduled(ask(3), IN_TWO_SECONDS, "charge:o"),)


@pytest.mark.parametrize("is_unknown", [True, False])
def test_an_attempt_that_sent_nothing_is_an_attempt(is_unknown: bool) -> None:
    """A look that failed, say, after a restart: were the next one a first, it would charge without looking."""
    failure = ChargeFailed(order_id="o", is_unknown=is_unknown, retry_seconds=2, calls=0)
    decision = when(given(RESERVED), failure)
    assert decision.events[0] == Scheduled(ask(2), IN_TWO_SECONDS, "charge:o")
    assert decision.states[0].calls == 0


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
    assert decision.events == (ask_back(),)
    assert when(decision.states[0], CANCELLED).events == ()
    refunded = when(decision.states[0], REFUNDED)
    assert refunded.states[0].status is PaymentStatus.REFUNDED
    assert refunded.events == (PaymentRefunded(order_id="o", amount=EUR, reference="b"),)
    assert when(refunded.states[0], REFUNDED) == Decision()


def test_money_that_turns_up_after_the_cancellation_goes_back() -> None:
    """And the order never hears that it came."""
    assert when(given(RESERVED, CANCELLED), CHARGED).events == (ask_back(),)
    assert when(given(RESERVED, CANCELLED, REFUSED), CHARGED).events == (ask_back(),)


def test_a_refusal_after_the_cancellation_is_the_end() -> None:
    """Nobody waits for it any more."""
    decision = when(given(RESERVED, CANCELLED), REFUSED)
    assert (decision.states[0].status, decision.events) == (PaymentStatus.DECLINED, ())


def test_cancelled_while_the_next_attempt_waits_it_is_withdrawn() -> None:
    """The gateway has certainly seen nothing: that is the end."""
    decision = when(given(RESERVED, AWAY), CANCELLED)
    assert decision.states[0].status is PaymentStatus.DECLINED
    assert decision.events == (CancelTimer("charge:o"),)


def test_cancelled_while_unknown_it_is_looked_up_and_not_charged() -> None:
    """Now, and not when the next attempt would have been due."""
    decision = when(given(RESERVED, SILENT), CANCELLED)
    assert decision.states[0].status is PaymentStatus.UNKNOWN
    assert decision.events == (CancelTimer("charge:o"), ask(2, is_wanted=False))
    again = when(decision.states[0], AWAY)
    assert again.events == (Scheduled(ask(3, is_wanted=False), IN_TWO_SECONDS, "charge:o"),)


def test_an_attempt_that_could_not_be_withdrawn_any_more_is_looked_up() -> None:
    """It was on its way when the order was cancelled, and brought no answer: it may have taken the money."""
    given_up = given(RESERVED, AWAY, CANCELLED)
    assert given_up.status is PaymentStatus.DECLINED
    decision = when(given_up, SILENT)
    assert decision.states[0].status is PaymentStatus.UNKNOWN
    assert decision.events == (Scheduled(ask(3, is_wanted=False), IN_TWO_SECONDS, "charge:o"),)
    assert when(given_up, AWAY) == Decision()


def test_cancelled_while_the_call_is_out_the_answer_decides() -> None:
    """That it did not arrive is the end; that nobody knows is not."""
    out = given(RESERVED, CANCELLED)
    ended = when(out, AWAY)
    assert (ended.states[0].status, ended.events) == (PaymentStatus.DECLINED, ())
    assert when(out, SILENT).events == (Scheduled(ask(2, is_wanted=False), IN_TWO_SECONDS, "charge:o"),)


def test_a_refund_is_asked_for_again() -> None:
    """Until it is answered."""
    decision = when(given(RESERVED, CHARGED, CANCELLED), REFUND_FAILED)
    assert decision.states[0].status is PaymentStatus.CAPTURED
    assert decision.events == (Scheduled(ask_back(attempt=2), NOW + timedelta(seconds=3)),)
    assert when(given(RESERVED, CHARGED, CANCELLED, REFUNDED), REFUND_FAILED) == Decision()


def test_a_refund_that_was_not_even_asked_for_is_no_attempt() -> None:
    """The house was closing: nothing was counted, and nothing is said of it but the next attempt."""
    unasked = evolve(REFUND_FAILED, calls=0)
    assert when(given(RESERVED, CHARGED, CANCELLED), unasked).events == (Scheduled(ask_back(), NOW + timedelta(seconds=3)),)


def test_a_refund_that_fails_is_seen_until_it_succeeds() -> None:
    """Whoever looks at the payment reads why the money has not gone back."""
    failed = given(RESERVED, CHARGED, CANCELLED, evolve(REFUND_FAILED, reason="refund_refused: closed"))
    assert (failed.status, failed.reason) == (PaymentStatus.CAPTURED, "refund_refused: closed")
    assert when(failed, REFUNDED).states[0].reason is None


def test_what_waits_for_the_provider_says_so_once() -> None:
    """Before its first attempt; after that the attempt itself said so. Who is cancelled waits for nothing."""
    delayed = ChargeDelayed(order_id="o")
    assert when(given(RESERVED), delayed) == Decision(events=(PaymentDelayed(order_id="o"),))
    for payment in None, given(RESERVED, AWAY), given(RESERVED, CANCELLED), given(RESERVED, CHARGED), given(RESERVED, REFUSED):
        assert when(payment, delayed) == Decision()


def test_what_contradicts_is_put_aside_and_looked_at_once_more() -> None:
    """Unknown, with a reason; the second look takes no money, and after it nobody looks again."""
    decision = when(given(RESERVED), WRONG)
    [aside] = decision.states
    assert (aside.status, aside.reason, aside.reference) == (PaymentStatus.UNKNOWN, "wrong_amount", "w")
    look = Scheduled(ask(2, is_wanted=False), NOW + timedelta(seconds=5), "charge:o")
    assert decision.events == (look, PaymentReviewRequired(order_id="o", reason="wrong_amount"))
    again = when(aside, WRONG)
    assert again.events == ()
    assert not again.states[0].is_waiting
    assert when(aside, CHARGED).events == (CAPTURED,)
    assert given(RESERVED, WRONG, CHARGED).reason is None


def test_what_is_put_aside_is_no_refusal_until_the_order_is_off() -> None:
    """The provider has said two things; only when nobody wants the money any more is "none taken" the end."""
    aside = given(RESERVED, WRONG)
    kept = when(aside, REFUSED)
    assert (kept.states[0].status, kept.events) == (PaymentStatus.UNKNOWN, ())
    assert given(RESERVED, WRONG, CANCELLED, REFUSED).status is PaymentStatus.DECLINED


def test_what_is_put_aside_and_then_cancelled_is_looked_at_again() -> None:
    """At once; what was taken after all goes back, and what still contradicts stays with the person."""
    for aside, said in (given(RESERVED, WRONG), 2), (given(RESERVED, WRONG, WRONG), 1):
        decision = when(aside, CANCELLED)
        assert [event for event in decision.events if isinstance(event, ChargeRequested)] == [
            ask(aside.attempts, is_wanted=False)
        ]
        assert len(decision.events) == said
    off = given(RESERVED, WRONG, WRONG, CANCELLED)
    assert when(off, evolve(CHARGED, reference="w")).events == (ask_back(reference="w"),)
    assert when(off, WRONG).events == ()
    assert when(off, WRONG).states[0].needs_review


def test_what_the_gateway_says_by_itself_is_as_good_as_its_answer() -> None:
    """Before the answer and after it, and though the order is off; what waits for another attempt is withdrawn."""
    assert when(given(RESERVED), SEEN).events == (CAPTURED,)
    assert when(given(RESERVED, SILENT), SEEN).events == (CAPTURED, CancelTimer("charge:o"))
    assert when(given(RESERVED, CANCELLED), SEEN).events == (ask_back(),)
    assert when(given(RESERVED, CANCELLED, REFUSED), SEEN).events == (ask_back(),)
    assert when(given(RESERVED, CHARGED), SEEN) == Decision()
    assert when(given(RESERVED, SEEN), CHARGED) == Decision()
    declined = PaymentDeclined(order_id="o", amount=EUR, reason="no_funds")
    assert when(given(RESERVED), REFUSAL_SEEN).events == (declined,)
    assert when(given(RESERVED, CHARGED), REFUSAL_SEEN) == Decision()
    assert when(given(RESERVED, WRONG), REFUSAL_SEEN) == Decision()
    refunded = PaymentRefunded(order_id="o", amount=EUR, reference="r")
    assert when(given(RESERVED, CHARGED, CANCELLED), REFUND_SEEN).events == (refunded,)
    assert when(given(RESERVED, CHARGED, CANCELLED, REFUNDED), REFUND_SEEN) == Decision()


@pytest.mark.parametrize(
    ("before", "event", "reason"),
    [
        ([], SEEN, "unknown_order"),
        ([CANCELLED], SEEN, "not_asked_for"),
        ([RESERVED], evolve(SEEN, amount=Money(251, "EUR")), "wrong_amount"),
        ([RESERVED], evolve(SEEN, amount=Money(250, "USD")), "wrong_currency"),
        ([RESERVED], evolve(REFUSAL_SEEN, amount=Money(1, "EUR")), "wrong_amount"),
        ([RESERVED, CHARGED], evolve(SEEN, reference="another"), "two_charges"),
        ([RESERVED], REFUND_SEEN, "not_captured"),
        ([RESERVED, CHARGED], evolve(REFUND_SEEN, refunded_amount=100), "partly_refunded"),
    ],
)
def test_what_does_not_fit_is_not_believed(before: list[Any], event: Any, reason: str) -> None:
    """Nothing changes; whoever told it hears why."""
    payment = given(*before) if before else None
    assert when(payment, event) == Decision(events=(NoticeRejected(order_id="o", reason=reason),))


def test_money_that_somebody_else_gave_back_is_gone_and_noticed() -> None:
    """By hand, at the provider, though the order stands: our books follow, and a person hears of it."""
    decision = when(given(RESERVED, CHARGED), REFUND_SEEN)
    assert decision.states[0].status is PaymentStatus.REFUNDED
    assert decision.events == (
        PaymentRefunded(order_id="o", amount=EUR, reference="r"),
        NoticeRejected(order_id="o", reason="refunded_elsewhere"),
    )
    assert when(decision.states[0], REFUND_SEEN) == Decision(events=decision.events[1:]), "told again, it is to be noticed again"
    assert when(decision.states[0], CANCELLED).events == ()
    assert when(when(decision.states[0], CANCELLED).states[0], REFUND_SEEN) == Decision()


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
