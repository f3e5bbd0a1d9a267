"""The state machine of a payment: given these events, when this one arrives, then expect this decision."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from modules.inventory.events import StockReserved
from modules.module import CancelTimer, Decision, Scheduled, Unexpected
from modules.orders.events import OrderCancelled, OrderRefundRequested
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
    DisputeReported,
    NoticeRejected,
    PaymentCaptured,
    PaymentDeclined,
    PaymentDelayed,
    PaymentRefunded,
    PaymentReviewRequired,
    RefundFailed,
    RefundNotified,
    RefundReported,
    RefundRequested,
    RefundSucceeded,
)
from modules.payments.state import Payment, PaymentStatus
from modules.values import Address, Money
from tests.modules.saga import NOW

EUR = Money(250, "EUR")
RESERVED = StockReserved(order_id="o", lines=(), total=EUR, payment_method="pm")
CANCELLED = OrderCancelled(order_id="o", customer_id="c", items=(), reason="requested")
CHARGED = ChargeSucceeded(order_id="o", reference="r", calls=1)
DECLINED = ChargeDeclined(order_id="o", reason="no_funds", calls=1)
NOT_REACHED = ChargeFailed(order_id="o", is_unknown=False, retry_seconds=2, calls=1)
TIMED_OUT = ChargeFailed(order_id="o", is_unknown=True, retry_seconds=2, calls=1)
REFUNDED = RefundSucceeded(order_id="o", reference="b")
REFUND_FAILED = RefundFailed(order_id="o", retry_seconds=3)
CAPTURED = PaymentCaptured(order_id="o", amount=EUR, reference="r")
MISMATCH = ChargeMismatch(order_id="o", reason="wrong_amount", reference="w", calls=1)
CHARGE_NOTICE = ChargeNotified(order_id="o", reference="r", amount=EUR)
DECLINE_NOTICE = DeclineNotified(order_id="o", reference="r", amount=EUR, reason="no_funds")
REFUND_NOTICE = RefundNotified(order_id="o", reference="r", amount=EUR, refunded_amount=250)
REPORTED = RefundReported(
    order_id="o", reference="r", refund_reference="b", amount=Money(100, "EUR"), status="succeeded"
)
DISPUTED = DisputeReported(order_id="o", reference="r", dispute_reference="d", amount=EUR, status="open")
PART = OrderRefundRequested(order_id="o", refund_id="r-1", amount=Money(100, "EUR"), reason="broken")
PART_FAILED = RefundFailed(order_id="o", retry_seconds=1, is_definite=True, reason="charge_disputed")
SOFT = ChargeDeclined(order_id="o", reason="processing_error", calls=1, is_soft=True, key_number=2)
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


def charge_request(attempt: int, is_wanted: bool = True, key_number: int = 1, **details: Any) -> ChargeRequested:
    return ChargeRequested(
        order_id="o", amount=EUR, attempt=attempt, is_wanted=is_wanted, payment_method="pm", key_number=key_number, **details
    )


def refund_request(attempt: int = 1, reference: str = "r") -> RefundRequested:
    return RefundRequested(order_id="o", amount=EUR, reference=reference, attempt=attempt)


def test_a_stock_reservation_requests_one_charge() -> None:
    """A repeated reservation requests nothing."""
    decision = when(None, RESERVED)
    assert decision.states[0].status is PaymentStatus.PENDING
    assert decision.events == (charge_request(1),)
    assert when(given(RESERVED), RESERVED) == Decision()


def test_a_successful_charge_captures_the_payment() -> None:
    """The payment records the gateway's reference and the number of calls."""
    decision = when(given(RESERVED, NOT_REACHED), CHARGED)
    [payment] = decision.states
    assert (payment.status, payment.reference, payment.calls, payment.is_waiting) == (PaymentStatus.CAPTURED, "r", 2, False)
    assert decision.events == (CAPTURED,)


def test_a_declined_charge_declines_the_payment() -> None:
    """The event has the gateway's reason."""
    decision = when(given(RESERVED), DECLINED)
    assert decision.states[0].status is PaymentStatus.DECLINED
    assert decision.events == (PaymentDeclined(order_id="o", amount=EUR, reason="no_funds"),)


@pytest.mark.parametrize(("failure", "status"), [(NOT_REACHED, PaymentStatus.PENDING), (TIMED_OUT, PaymentStatus.UNKNOWN)])
def test_a_failed_charge_is_retried_by_a_timer(failure: ChargeFailed, status: PaymentStatus) -> None:
    """Orders is informed of the first delay only. Unknown is neither success nor failure."""
    decision = when(given(RESERVED), failure)
    assert (decision.states[0].status, decision.states[0].is_waiting) == (status, True)
    assert decision.events == (Scheduled(charge_request(2), IN_TWO_SECONDS, "charge:o"), PaymentDelayed(order_id="o"))
    decision = when(decision.states[0], NOT_REACHED)
    assert decision.states[0].status is status
    assert decision.events == (Scheduled(charge_request(3), IN_TWO_SECONDS, "charge:o"),)


@pytest.mark.parametrize(
    ("before", "event", "status", "reason", "attempts", "calls", "is_waiting"),
    [
        ((), RESERVED, "pending", None, 1, 0, False),
        ((), CANCELLED, "declined", "order_cancelled", 0, 0, False),
        ((RESERVED,), CHARGED, "captured", None, 1, 1, False),
        ((RESERVED, MISMATCH), DECLINED, "unknown", "wrong_amount", 2, 1, False),
        ((RESERVED, SOFT), DECLINED, "declined", "no_funds", 2, 2, False),
        ((RESERVED, SOFT), evolve(DECLINED, calls=0), "declined", "processing_error", 2, 1, False),
        ((RESERVED, DECLINED), CANCELLED, "declined", "no_funds", 1, 1, False),
        ((RESERVED,), CHARGE_NOTICE, "captured", None, 1, 0, False),
        ((RESERVED,), DECLINE_NOTICE, "declined", "no_funds", 1, 0, False),
        ((RESERVED,), REFUND_NOTICE, "refunded", None, 1, 0, False),
        ((RESERVED, DECLINED), REFUND_NOTICE, "refunded", None, 1, 1, False),
        ((RESERVED, NOT_REACHED), DECLINED, "declined", "no_funds", 2, 2, False),
        ((RESERVED,), NOT_REACHED, "pending", None, 2, 1, True),
        ((RESERVED, TIMED_OUT), NOT_REACHED, "unknown", None, 3, 2, True),
        ((RESERVED,), SOFT, "pending", "processing_error", 2, 1, True),
        ((RESERVED, TIMED_OUT), SOFT, "pending", "processing_error", 3, 2, True),
        ((RESERVED, SOFT), NOT_REACHED, "pending", "processing_error", 3, 2, True),
        ((RESERVED, SOFT), TIMED_OUT, "unknown", None, 3, 2, True),
        ((RESERVED,), MISMATCH, "unknown", "wrong_amount", 2, 1, True),
        ((RESERVED, MISMATCH), MISMATCH, "unknown", "wrong_amount", 3, 2, False),
        ((RESERVED, MISMATCH), NOT_REACHED, "unknown", "wrong_amount", 3, 2, True),
        ((RESERVED,), CANCELLED, "pending", None, 1, 0, False),
        ((RESERVED, CANCELLED), NOT_REACHED, "declined", "order_cancelled", 1, 1, False),
        ((RESERVED, NOT_REACHED), CANCELLED, "declined", "order_cancelled", 2, 1, False),
        ((RESERVED, TIMED_OUT), CANCELLED, "unknown", None, 2, 1, False),
    ],
)
def test_a_payment_records_each_result(
    before: Sequence[Any], event: Any, status: str, reason: str | None, attempts: int, calls: int, is_waiting: bool
) -> None:
    """Its status and reason, how often the gateway was asked, whether a timer is set, and when."""
    later = NOW + timedelta(hours=1)
    [payment] = decide((given(*before) if before else None,), event, later).states
    assert isinstance(payment, Payment)
    assert (payment.status.value, payment.reason, payment.attempts, payment.calls) == (status, reason, attempts, calls)
    assert (payment.is_waiting, payment.is_cancelled) == (is_waiting, CANCELLED in (*before, event))
    assert payment.updated_at == later


def test_each_attempt_has_the_customer_of_a_saved_card_and_the_address() -> None:
    """The gateway charges a saved card only for its customer."""
    address = Address("1 Main St", "Springfield", "12345", "US")
    details: dict[str, Any] = {"payment_customer": "cus_1", "shipping_address": address}
    reserved = StockReserved(order_id="o", lines=(), total=EUR, payment_method="pm", **details)
    assert when(None, reserved).events == (charge_request(1, **details),)
    retry = when(given(reserved), NOT_REACHED).events[0]
    assert retry == Scheduled(charge_request(2, **details), IN_TWO_SECONDS, "charge:o")


def test_the_next_attempt_has_the_key_that_the_worker_has_named() -> None:
    """After a definite failure that is another one."""
    [retry, _] = when(given(RESERVED), evolve(NOT_REACHED, key_number=2)).events
    assert retry == Scheduled(charge_request(2, key_number=2), IN_TWO_SECONDS, "charge:o")


@pytest.mark.parametrize(
    ("before", "is_finished"),
    [
        ((RESERVED,), False),
        ((RESERVED, TIMED_OUT), False),
        ((RESERVED, TIMED_OUT, CANCELLED), False),
        ((RESERVED, MISMATCH, MISMATCH), False),
        ((RESERVED, CHARGED), True),
        ((RESERVED, DECLINED), True),
        ((RESERVED, CHARGED, CANCELLED), False),
        ((RESERVED, CHARGED, CANCELLED, REFUND_FAILED), False),
        ((RESERVED, CHARGED, CANCELLED, REFUNDED), True),
        ((RESERVED, CHARGED, DISPUTED), False),
        ((RESERVED, CHARGED, evolve(DISPUTED, status="lost")), True),
        ((RESERVED, CHARGED, PART), False),
        ((RESERVED, CHARGED, PART, evolve(DISPUTED, status="lost"), PART_FAILED), False),
        ((RESERVED, CHARGED, evolve(DISPUTED, status="lost"), CANCELLED), False),
    ],
)
def test_a_payment_is_finished_once_it_waits_for_nothing(before: Sequence[Any], is_finished: bool) -> None:
    """From the moment on that follows its last change."""
    payment = given(*before)
    assert payment.is_finished_since(NOW + timedelta(microseconds=1)) is is_finished
    assert not payment.is_finished_since(NOW)


@pytest.mark.parametrize("is_unknown", [True, False])
def test_an_attempt_without_a_call_counts_as_an_attempt(is_unknown: bool) -> None:
    """For example a failed look-up after a restart: a first attempt would charge without a look-up."""
    failure = ChargeFailed(order_id="o", is_unknown=is_unknown, retry_seconds=2, calls=0)
    decision = when(given(RESERVED), failure)
    assert decision.events[0] == Scheduled(charge_request(2), IN_TWO_SECONDS, "charge:o")
    assert decision.states[0].calls == 0


def test_a_cancellation_before_the_reservation_prevents_any_charge() -> None:
    """The row remains, so the reservation that arrives later requests no charge."""
    decision = when(None, CANCELLED)
    assert decision.states[0].status is PaymentStatus.DECLINED
    assert decision.events == ()
    assert when(decision.states[0], RESERVED) == Decision()
    assert when(decision.states[0], CANCELLED).events == ()


def test_a_captured_payment_is_refunded_once_after_a_cancellation() -> None:
    """Also if the cancellation or the refund is reported twice."""
    decision = when(given(RESERVED, CHARGED), CANCELLED)
    assert decision.events == (refund_request(),)
    assert when(decision.states[0], CANCELLED).events == ()
    refunded = when(decision.states[0], REFUNDED)
    assert refunded.states[0].status is PaymentStatus.REFUNDED
    assert refunded.events == (PaymentRefunded(order_id="o", amount=EUR, reference="b"),)
    assert when(refunded.states[0], REFUNDED) == Decision()


def test_a_charge_that_succeeds_after_the_cancellation_is_refunded() -> None:
    """No event reports the capture to orders."""
    assert when(given(RESERVED, CANCELLED), CHARGED).events == (refund_request(),)
    assert when(given(RESERVED, CANCELLED, DECLINED), CHARGED).events == (refund_request(),)


def test_a_contradiction_after_a_decline_is_left_to_a_person() -> None:
    """The notice of a decline came first; the answer to the call shows that money may have been taken."""
    decision = when(given(RESERVED, DECLINE_NOTICE), MISMATCH)
    [payment] = decision.states
    assert isinstance(payment, Payment)
    assert (payment.status, payment.needs_review, payment.reference) == (PaymentStatus.UNKNOWN, True, "w")
    assert [type(event) for event in decision.events] == [Scheduled, PaymentReviewRequired]


def test_the_reference_of_a_contradiction_is_kept() -> None:
    """The next look-up may show less; a person who settles the payment needs it for a refund."""
    nameless = evolve(MISMATCH, reason="nonsense", reference=None)
    assert given(RESERVED, MISMATCH, nameless).reference == "w"
    assert given(RESERVED, nameless, MISMATCH).reference == "w"


def test_the_notice_of_an_earlier_decline_contradicts_no_charge() -> None:
    """Each attempt has a charge of its own at the gateway, and the notice of the one that was declined may be late."""
    declined = evolve(DECLINE_NOTICE, reference="earlier")
    assert when(given(RESERVED, SOFT, CHARGED), declined) == Decision()
    assert when(given(RESERVED, SOFT, CHARGED, CANCELLED, REFUNDED), declined) == Decision()


def test_a_decline_after_the_cancellation_emits_nothing() -> None:
    """The order is already cancelled."""
    decision = when(given(RESERVED, CANCELLED), DECLINED)
    assert (decision.states[0].status, decision.events) == (PaymentStatus.DECLINED, ())


def test_a_cancellation_cancels_the_timer_of_the_next_attempt() -> None:
    """The gateway has certainly received no call, so the payment is declined."""
    decision = when(given(RESERVED, NOT_REACHED), CANCELLED)
    assert decision.states[0].status is PaymentStatus.DECLINED
    assert decision.events == (CancelTimer("charge:o"),)


def test_a_cancelled_payment_of_unknown_outcome_is_looked_up_and_not_charged() -> None:
    """At once, and not when the next attempt would have been due."""
    decision = when(given(RESERVED, TIMED_OUT), CANCELLED)
    assert decision.states[0].status is PaymentStatus.UNKNOWN
    assert decision.events == (CancelTimer("charge:o"), charge_request(2, is_wanted=False))
    failed = when(decision.states[0], NOT_REACHED)
    assert failed.events == (Scheduled(charge_request(3, is_wanted=False), IN_TWO_SECONDS, "charge:o"),)


def test_an_attempt_that_was_under_way_at_the_cancellation_is_looked_up() -> None:
    """Its response is missing, so it may have made the charge."""
    declined_payment = given(RESERVED, NOT_REACHED, CANCELLED)
    assert declined_payment.status is PaymentStatus.DECLINED
    decision = when(declined_payment, TIMED_OUT)
    assert decision.states[0].status is PaymentStatus.UNKNOWN
    assert decision.events == (Scheduled(charge_request(3, is_wanted=False), IN_TWO_SECONDS, "charge:o"),)
    assert when(declined_payment, NOT_REACHED) == Decision()


def test_the_result_of_a_call_under_way_at_the_cancellation_decides() -> None:
    """A call that did not reach the gateway ends the payment; a call without a response does not."""
    cancelled = given(RESERVED, CANCELLED)
    final = when(cancelled, NOT_REACHED)
    assert (final.states[0].status, final.events) == (PaymentStatus.DECLINED, ())
    assert when(cancelled, TIMED_OUT).events == (Scheduled(charge_request(2, is_wanted=False), IN_TWO_SECONDS, "charge:o"),)


def test_a_failed_refund_is_retried() -> None:
    """Until it succeeds."""
    decision = when(given(RESERVED, CHARGED, CANCELLED), REFUND_FAILED)
    assert decision.states[0].status is PaymentStatus.CAPTURED
    assert decision.events == (Scheduled(refund_request(attempt=2), NOW + timedelta(seconds=3), "refund:o:1"),)
    assert when(given(RESERVED, CHARGED, CANCELLED, REFUNDED), REFUND_FAILED) == Decision()


def test_a_refund_without_a_call_does_not_count_as_an_attempt() -> None:
    """The process was shutting down: the next request has the same attempt number."""
    without_call = evolve(REFUND_FAILED, calls=0)
    retry = Scheduled(refund_request(), NOW + timedelta(seconds=3), "refund:o:1")
    assert when(given(RESERVED, CHARGED, CANCELLED), without_call).events == (retry,)


def test_a_payment_has_the_reason_of_a_failed_refund_until_the_refund_succeeds() -> None:
    """A client can read why the refund is missing."""
    failed = given(RESERVED, CHARGED, CANCELLED, evolve(REFUND_FAILED, reason="refund_refused: closed"))
    assert (failed.status, failed.reason) == (PaymentStatus.CAPTURED, "refund_refused: closed")
    assert when(failed, REFUNDED).states[0].reason is None


def test_a_delay_is_published_once() -> None:
    """Before the first attempt only, because a failed attempt publishes it itself; never for a cancelled order."""
    delayed = ChargeDelayed(order_id="o")
    assert when(given(RESERVED), delayed) == Decision(events=(PaymentDelayed(order_id="o"),))
    for payment in None, given(RESERVED, NOT_REACHED), given(RESERVED, CANCELLED), given(RESERVED, CHARGED), given(RESERVED, DECLINED):
        assert when(payment, delayed) == Decision()


def test_a_contradictory_response_requires_review_and_one_look_up() -> None:
    """The status is unknown, with a reason. The look-up makes no charge, and is not repeated."""
    decision = when(given(RESERVED), MISMATCH)
    [under_review] = decision.states
    assert (under_review.status, under_review.reason, under_review.reference) == (PaymentStatus.UNKNOWN, "wrong_amount", "w")
    recheck = Scheduled(charge_request(2, is_wanted=False), NOW + timedelta(seconds=5), "charge:o")
    assert decision.events == (recheck, PaymentReviewRequired(order_id="o", reason="wrong_amount"))
    second = when(under_review, MISMATCH)
    assert second.events == ()
    assert not second.states[0].is_waiting
    assert when(under_review, CHARGED).events == (CAPTURED,)
    assert given(RESERVED, MISMATCH, CHARGED).reason is None


def test_a_payment_under_review_is_not_declined_before_the_order_is_cancelled() -> None:
    """The responses contradict each other, so "no charge found" is final only once the order is cancelled."""
    under_review = given(RESERVED, MISMATCH)
    rechecked = when(under_review, DECLINED)
    assert (rechecked.states[0].status, rechecked.events) == (PaymentStatus.UNKNOWN, ())
    assert given(RESERVED, MISMATCH, CANCELLED, DECLINED).status is PaymentStatus.DECLINED


def test_a_payment_under_review_is_looked_up_again_after_a_cancellation() -> None:
    """At once. A charge that exists is refunded; a contradiction stays under review."""
    for under_review, event_count in (given(RESERVED, MISMATCH), 2), (given(RESERVED, MISMATCH, MISMATCH), 1):
        decision = when(under_review, CANCELLED)
        assert [event for event in decision.events if isinstance(event, ChargeRequested)] == [
            charge_request(under_review.attempts, is_wanted=False)
        ]
        assert len(decision.events) == event_count
    cancelled = given(RESERVED, MISMATCH, MISMATCH, CANCELLED)
    assert when(cancelled, evolve(CHARGED, reference="w")).events == (refund_request(reference="w"),)
    assert when(cancelled, MISMATCH).events == ()
    assert when(cancelled, MISMATCH).states[0].needs_review


def test_a_notice_has_the_same_effect_as_the_response_to_a_call() -> None:
    """Before the response and after it, also for a cancelled order; it cancels the timer of the next attempt."""
    assert when(given(RESERVED), CHARGE_NOTICE).events == (CAPTURED,)
    assert when(given(RESERVED, TIMED_OUT), CHARGE_NOTICE).events == (CAPTURED, CancelTimer("charge:o"))
    assert when(given(RESERVED, CANCELLED), CHARGE_NOTICE).events == (refund_request(),)
    assert when(given(RESERVED, CANCELLED, DECLINED), CHARGE_NOTICE).events == (refund_request(),)
    assert when(given(RESERVED, CHARGED), CHARGE_NOTICE) == Decision()
    assert when(given(RESERVED, CHARGE_NOTICE), CHARGED) == Decision()
    declined = PaymentDeclined(order_id="o", amount=EUR, reason="no_funds")
    assert when(given(RESERVED), DECLINE_NOTICE).events == (declined,)
    assert when(given(RESERVED, CHARGED), DECLINE_NOTICE) == Decision()
    assert when(given(RESERVED, MISMATCH), DECLINE_NOTICE) == Decision()
    assert when(given(RESERVED, CHARGED, CANCELLED), REFUND_NOTICE).events == (), "the refund under way explains the total"
    assert when(given(RESERVED, CHARGED, CANCELLED, REFUNDED), REFUND_NOTICE).events == ()


@pytest.mark.parametrize(
    ("before", "event", "reason"),
    [
        ([], CHARGE_NOTICE, "unknown_order"),
        ([CANCELLED], CHARGE_NOTICE, "not_asked_for"),
        ([RESERVED], evolve(CHARGE_NOTICE, amount=Money(251, "EUR")), "wrong_amount"),
        ([RESERVED], evolve(CHARGE_NOTICE, amount=Money(250, "USD")), "wrong_currency"),
        ([RESERVED], evolve(DECLINE_NOTICE, amount=Money(1, "EUR")), "wrong_amount"),
        ([RESERVED, CHARGED], evolve(CHARGE_NOTICE, reference="another"), "two_charges"),
        ([RESERVED, CHARGED], evolve(REFUND_NOTICE, reference="another"), "two_charges"),
        ([RESERVED, CHARGED], evolve(REPORTED, reference="another"), "two_charges"),
        ([RESERVED, CHARGED], evolve(REPORTED, amount=Money(100, "USD")), "wrong_currency"),
        ([RESERVED, CHARGED], evolve(DISPUTED, reference="another"), "two_charges"),
        ([CANCELLED], REPORTED, "not_asked_for"),
        ([], DISPUTED, "unknown_order"),
    ],
)
def test_a_notice_that_does_not_match_is_rejected(before: list[Any], event: Any, reason: str) -> None:
    """It changes nothing; the reply has the reason."""
    payment = given(*before) if before else None
    assert when(payment, event) == Decision(events=(NoticeRejected(order_id="o", reason=reason),))


def test_a_refund_made_at_the_provider_counts() -> None:
    """The payment is refunded although the order stands; a cancellation that follows finds nothing to refund."""
    decision = when(given(RESERVED, CHARGED), REFUND_NOTICE)
    assert decision.states[0].status is PaymentStatus.REFUNDED
    assert decision.events == (PaymentRefunded(order_id="o", amount=EUR, reference="r"),)
    assert when(decision.states[0], REFUND_NOTICE) == Decision()
    assert when(decision.states[0], CANCELLED).events == ()


def test_a_notice_of_a_refund_that_arrives_before_the_capture_proves_the_capture() -> None:
    """The provider refunds only what it has captured."""
    decision = when(given(RESERVED, TIMED_OUT), evolve(REFUND_NOTICE, refunded_amount=100))
    assert (decision.states[0].captured, decision.states[0].kept) == (250, 150)
    assert decision.events == (
        CAPTURED,
        PaymentRefunded(order_id="o", amount=Money(100, "EUR"), reference="r", kept=Money(150, "EUR")),
        CancelTimer("charge:o"),
    )
    assert when(decision.states[0], CHARGED) == Decision()


@pytest.mark.parametrize("notice", [REPORTED, evolve(REPORTED, status="pending"), evolve(REPORTED, status="failed"), DISPUTED])
def test_what_is_refunded_or_disputed_was_captured_although_it_was_declined(notice: Any) -> None:
    """The webhook of the capture got lost. What is left goes back, or is a case for a person while the charge is disputed."""
    declined = given(RESERVED, CANCELLED, DECLINED)
    decision = when(declined, notice)
    [payment] = decision.states
    assert isinstance(payment, Payment)
    assert (payment.status, payment.reference, payment.captured) == (PaymentStatus.CAPTURED, "r", 250)
    assert payment.captured - payment.refunded == payment.kept
    assert payment.is_open_case is (notice is DISPUTED)
    requested = sum(each.amount.amount for each in decision.events if isinstance(each, RefundRequested))
    assert requested == {"succeeded": 150, "pending": 150, "failed": 250, "open": 0}[notice.status]
    assert when(payment, notice) == Decision()


def test_a_dispute_in_another_currency_is_about_the_whole_payment() -> None:
    """The customer's bank states it in the currency of the card; the shop's account shows that the charge is disputed."""
    decision = when(given(RESERVED, CHARGED), evolve(DISPUTED, amount=Money(31_000, "JPY")))
    payment = decision.states[0]
    assert isinstance(payment, Payment)
    assert (payment.dispute, payment.ledger.disputes[0].amount if payment.ledger else None) == ("open", 250)


def test_the_charge_of_a_cancelled_order_is_not_looked_up_for_ever() -> None:
    """
    The older the order, the later the next look-up; after 30 days a person has to find out; this is reported once.

    After a few attempts an order that old is one whose clock has jumped: it is looked up soon.
    """
    order_id = "019b796d-d600-7000-8000-000000000001"  # placed at noon, as NOW
    reserved = StockReserved(order_id=order_id, lines=(), total=EUR, payment_method="pm")
    cancelled = OrderCancelled(order_id=order_id, customer_id="c", items=(), reason="requested")
    timed_out = evolve(TIMED_OUT, order_id=order_id)
    payment = given(reserved, timed_out, cancelled)
    [retry] = decide((payment,), timed_out, NOW + timedelta(days=92)).events
    assert isinstance(retry, Scheduled)
    assert retry.due_at == NOW + timedelta(days=92, seconds=4)
    payment = evolve(payment, attempts=160)
    delays = {}
    for minutes in 0, 1, 10, 60, 60 * 24 * 29:
        now = NOW + timedelta(minutes=minutes)
        decision = decide((payment,), timed_out, now)
        [retry] = decision.events
        assert isinstance(retry, Scheduled)
        delays[minutes] = (retry.due_at - now).total_seconds()
    assert delays == {0: 2, 1: 3, 10: 30, 60: 180, 60 * 24 * 29: 300}
    [retry] = decide((payment,), evolve(timed_out, retry_seconds=90), NOW + timedelta(minutes=10)).events
    assert isinstance(retry, Scheduled)
    assert retry.due_at == NOW + timedelta(minutes=10, seconds=90), "the provider has asked for it"
    decision = decide((payment,), timed_out, NOW + timedelta(days=30, seconds=1))
    [given_up] = decision.states
    assert isinstance(given_up, Payment)
    assert (given_up.status, given_up.reason, given_up.is_open_case) == (PaymentStatus.UNKNOWN, "no_answer", True)
    assert (given_up.is_waiting, given_up.calls, given_up.updated_at) == (False, 2, NOW + timedelta(days=30, seconds=1))
    assert decision.events == (PaymentReviewRequired(order_id=order_id, reason="no_answer"),)
    assert decide((given_up,), timed_out, NOW + timedelta(days=31)).events == ()
    found = decide((given_up,), evolve(CHARGE_NOTICE, order_id=order_id), NOW + timedelta(days=32))
    assert isinstance(found.states[0], Payment)
    assert (found.states[0].status, found.states[0].is_open_case) == (PaymentStatus.CAPTURED, False)


def test_a_soft_decline_is_retried_on_a_schedule() -> None:
    """Each attempt has a new key; the webhook about the decline changes nothing, because the result of the call has the same content."""
    payment = given(RESERVED)
    assert when(payment, evolve(DECLINE_NOTICE, is_soft=True)) == Decision()
    for attempt, seconds in enumerate((30, 120, 300, 900), 2):
        decision = when(payment, evolve(SOFT, key_number=attempt))
        retry = Scheduled(charge_request(attempt, key_number=attempt), NOW + timedelta(seconds=seconds), "charge:o")
        assert decision.events == ((retry, PaymentDelayed(order_id="o")) if attempt == 2 else (retry,))
        payment = decision.states[0]
        assert (payment.status, payment.reason, payment.is_waiting) == (PaymentStatus.PENDING, "processing_error", True)
    given_up = when(payment, SOFT)
    assert given_up.events == (charge_request(6, is_wanted=False),), "the charge is cancelled at the gateway first"
    cancelled_there = ChargeDeclined(order_id="o", reason="canceled", calls=0)
    declined = when(given_up.states[0], cancelled_there)
    assert declined.states[0].status is PaymentStatus.DECLINED
    assert declined.events == (PaymentDeclined(order_id="o", amount=EUR, reason="processing_error"),)
    assert when(given_up.states[0], CHARGED).events == (CAPTURED,), "it was captured in the last moment"


def test_a_soft_decline_is_retried_within_the_time_out_of_its_order() -> None:
    """An attempt that would be due later is not made."""
    order_id = "019b796d-d600-7000-8000-000000000001"  # placed at noon, as NOW
    reserved = StockReserved(order_id=order_id, lines=(), total=EUR)
    soft = evolve(SOFT, order_id=order_id)
    for timeout, is_retried in (timedelta(seconds=31), True), (timedelta(seconds=30), False):
        [payment] = decide((None,), reserved, NOW, timeout=timeout).states
        [waiting] = decide((payment,), soft, NOW, timeout=timeout).states
        assert waiting.is_waiting is is_retried
        assert waiting.is_given_up is not is_retried


def test_a_softly_declined_charge_of_a_cancelled_order_is_cancelled_at_the_gateway() -> None:
    """Whether the order is cancelled while the next attempt waits, or while the call is under way."""
    waiting = when(given(RESERVED, SOFT), CANCELLED)
    assert waiting.events == (CancelTimer("charge:o"), charge_request(2, is_wanted=False))
    assert when(given(RESERVED, CANCELLED), SOFT).events == (charge_request(2, is_wanted=False),)
    failed = when(waiting.states[0], NOT_REACHED)
    assert failed.events == (Scheduled(charge_request(3, is_wanted=False), IN_TWO_SECONDS, "charge:o"),)
    assert when(failed.states[0], DECLINED).states[0].status is PaymentStatus.DECLINED


def test_an_unknown_outcome_after_a_soft_decline_needs_no_review() -> None:
    """It is looked up, and charged if there is nothing."""
    unknown = given(RESERVED, SOFT, TIMED_OUT)
    assert (unknown.status, unknown.needs_review) == (PaymentStatus.UNKNOWN, False)
    assert when(unknown, CHARGED).events == (CAPTURED,)


@pytest.mark.parametrize("event", [CHARGED, DECLINED, NOT_REACHED, TIMED_OUT], ids=["charged", "declined", "not reached", "timed out"])
def test_a_late_result_does_not_change_a_settled_payment(event: Any) -> None:
    """It belongs to an earlier attempt."""
    assert when(given(RESERVED, CHARGED), event) == Decision()
    assert when(given(RESERVED, CHARGED, CANCELLED, REFUNDED), event) == Decision()


@pytest.mark.parametrize("event", [CHARGED, DECLINED, TIMED_OUT, REFUNDED], ids=lambda e: type(e).__name__)
def test_a_result_without_a_request_is_unexpected(event: Any) -> None:
    """It becomes a dead letter."""
    with pytest.raises(Unexpected, match=f"^{type(event).__name__} for a payment that was never requested"):
        when(None, event)
    if event is REFUNDED:
        with pytest.raises(Unexpected, match=r"^RefundSucceeded while pending"):
            when(given(RESERVED), event)
