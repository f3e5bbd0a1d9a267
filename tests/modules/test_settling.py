"""A person closes the case of a payment, and only of one where nothing more happens by itself."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from attrs import evolve

from modules.module import Decision, no_change
from modules.payments.decide import decide
from modules.payments.events import (
    ChargeMismatch,
    ChargeNotified,
    DeclineNotified,
    DisputeReported,
    NoticeRejected,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    RefundFailed,
    RefundNotified,
    RefundProcessing,
    RefundReported,
    RefundRequested,
    SettleImpossible,
    SettleRequested,
)
from modules.payments.refunds import OPEN_MAX
from modules.payments.routes import show
from modules.payments.state import Payment, PaymentStatus
from tests.modules.saga import NOW
from tests.modules.test_ledger import AMOUNT, CANCELLED, CHARGED, EUR, RESERVED, after

MISMATCH = ChargeMismatch(order_id="o", reason="wrong_amount", reference="pi_wrong", calls=1)
NAMELESS = ChargeMismatch(order_id="o", reason="nonsense", reference=None, calls=1)
REVIEW = (RESERVED, MISMATCH, MISMATCH)
DISPUTED = DisputeReported(order_id="o", reference="pi", dispute_reference="dp", amount=EUR, status="lost")
MISSING_REFUND = (RESERVED, CHARGED, DISPUTED, CANCELLED)


def settle(events: tuple[Any, ...], outcome: str, now: datetime = NOW) -> Decision:
    payment, _ = after(*events)
    return decide((payment,), SettleRequested(order_id="o", outcome=outcome, why="looked at the dashboard"), now)


@pytest.mark.parametrize(
    ("events", "outcome", "status", "published"),
    [
        (REVIEW, "captured", PaymentStatus.CAPTURED, [PaymentCaptured]),
        (REVIEW, "declined", PaymentStatus.DECLINED, [PaymentDeclined]),
        (REVIEW, "refunded", PaymentStatus.REFUNDED, [PaymentDeclined]),
        ((*REVIEW, CANCELLED, MISMATCH), "captured", PaymentStatus.CAPTURED, [RefundRequested]),
        ((*REVIEW, CANCELLED, MISMATCH), "declined", PaymentStatus.DECLINED, []),
        ((*REVIEW, CANCELLED, MISMATCH), "refunded", PaymentStatus.REFUNDED, [PaymentRefunded]),
        (MISSING_REFUND, "captured", PaymentStatus.CAPTURED, []),
        (MISSING_REFUND, "refunded", PaymentStatus.REFUNDED, [PaymentRefunded]),
    ],
)
def test_a_case_is_closed_with_its_outcome(events: Any, outcome: str, status: PaymentStatus, published: list[type]) -> None:
    """Orders receives what follows for the order, and the payment needs no person any more."""
    decision = settle(events, outcome)
    [payment] = decision.states
    assert payment.status is status
    assert [type(event) for event in decision.events] == published
    assert not payment.is_open_case
    assert payment.captured - payment.refunded == payment.kept >= 0
    assert payment.kept == (AMOUNT if status is PaymentStatus.CAPTURED else 0)
    shown = show(payment)
    assert shown is not None
    assert shown["needs_settling"] is False
    again = decide((payment,), SettleRequested(order_id="o", outcome=outcome, why="x"), NOW)
    assert [type(event) for event in again.events] == [SettleImpossible]
    refund = [RefundRequested] if status is PaymentStatus.CAPTURED and not payment.is_cancelled else []
    assert [type(event) for event in decide((payment,), CANCELLED, NOW).events] == refund, "a later cancellation is an ordinary one"


@pytest.mark.parametrize("outcome", ["captured", "declined", "refunded"])
@pytest.mark.parametrize(
    "events",
    [(RESERVED,), (RESERVED, MISMATCH), (RESERVED, CHARGED), (RESERVED, CHARGED, CANCELLED), (CANCELLED,), (RESERVED, CHARGED, DISPUTED)],
    ids=["pending", "looked up once more", "captured", "being refunded", "never requested", "disputed"],
)
def test_nothing_else_can_be_settled(events: tuple[Any, ...], outcome: str) -> None:
    """It changes nothing."""
    decision = settle(events, outcome)
    assert decision.states == ()
    [reply] = decision.events
    assert isinstance(reply, SettleImpossible)
    assert reply.code == "no_case"


@pytest.mark.parametrize(
    ("events", "outcome", "code", "detail"),
    [
        ((RESERVED,), "captured", "no_case", "Only a payment that waits for a person can be settled."),
        (MISSING_REFUND, "declined", "is_captured", "The money was captured; the outcome is captured or refunded."),
        (
            (RESERVED, NAMELESS, NAMELESS, CANCELLED, NAMELESS), "captured",
            "no_reference", "It cannot be refunded without the reference of its charge.",
        ),
    ],
)  # fmt: skip
def test_a_rejected_settlement_explains_itself(events: Any, outcome: str, code: str, detail: str) -> None:
    """The person reads the sentence in the console."""
    assert settle(events, outcome) == no_change(SettleImpossible(order_id="o", code=code, detail=detail))


def test_orders_learns_that_a_person_has_decided() -> None:
    """The events of a settlement have the order, and its reason; the money that went back was the payment's."""
    declined = PaymentDeclined(order_id="o", amount=EUR, reason="settled")
    for outcome in "declined", "refunded":
        decision = settle(REVIEW, outcome, NOW + timedelta(hours=1))
        assert decision.events == (declined,)
    [refunded] = decision.states
    assert isinstance(refunded, Payment)
    assert (refunded.status, refunded.reason, refunded.updated_at) == (PaymentStatus.REFUNDED, None, NOW + timedelta(hours=1))
    assert refunded.ledger is not None
    assert [(each.amount, each.at) for each in refunded.ledger.refunds] == [(AMOUNT, "2026-01-01T13:00:00.000000Z")]
    taken = settle(REVIEW, "captured")
    assert taken.events == (PaymentCaptured(order_id="o", amount=EUR, reference="pi_wrong"),)
    assert isinstance(taken.states[0], Payment)
    assert taken.states[0].calls == 2


def test_an_impossible_outcome_is_rejected() -> None:
    """Money that was captured cannot have been declined, and a charge without a reference cannot be refunded."""
    assert [event.code for event in settle(MISSING_REFUND, "declined").events] == ["is_captured"]
    unnamed = ChargeMismatch(order_id="o", reason="wrong_key", reference=None, calls=1)
    assert [event.code for event in settle((RESERVED, unnamed, unnamed, CANCELLED, unnamed), "captured").events] == ["no_reference"]
    unknown = decide((None,), SettleRequested(order_id="o", outcome="captured", why="x"), NOW)
    assert unknown.events == (SettleImpossible(order_id="o", code=None),)


def test_the_rest_that_a_person_decided_to_keep_is_kept() -> None:
    """Also when the dispute is won later: nothing is refunded by itself any more."""
    disputed = evolve(DISPUTED, status="open")
    [payment] = settle((RESERVED, CHARGED, disputed, CANCELLED), "captured").states
    won = decide((payment,), evolve(DISPUTED, status="won"), NOW)
    [after_all] = won.states
    assert isinstance(after_all, Payment)
    assert (after_all.dispute, after_all.kept, after_all.is_open_case, won.events) == ("won", AMOUNT, False, ())


def test_what_is_settled_as_refunded_is_only_what_was_left() -> None:
    """4.00 had gone back already: the line and the event are about the other 6.00."""
    part = RefundNotified(order_id="o", reference="pi", amount=EUR, refunded_amount=400)
    decision = settle((RESERVED, CHARGED, part, DISPUTED, CANCELLED), "refunded")
    [payment] = decision.states
    assert isinstance(payment, Payment)
    assert payment.ledger is not None
    assert [refund.amount for refund in payment.ledger.refunds if refund.reason == "settled"] == [600]
    assert [event.amount.amount for event in decision.events if isinstance(event, PaymentRefunded)] == [600]
    assert (payment.ledger.refunded, payment.kept, payment.is_open_case) == (AMOUNT, 0, False)


@pytest.mark.parametrize(("outcome", "refund_status"), [("refunded", "succeeded"), ("captured", "failed")])
@pytest.mark.parametrize("is_accepted", [False, True], ids=["never answered", "pending"])
def test_a_refund_without_an_outcome_is_settled(outcome: str, refund_status: str, is_accepted: bool) -> None:
    """The refund that was given up stays in the list, but nothing waits for it: the case is closed, and may be archived."""
    processing = RefundProcessing(order_id="o", reference="re", key_number=1, refunded_total=AMOUNT)
    payment, _ = after(RESERVED, CHARGED, CANCELLED, *((processing,) if is_accepted else ()))
    failed = RefundFailed(order_id="o", retry_seconds=5, reason="refund_failed", key_number=1)
    later = NOW + OPEN_MAX + timedelta(seconds=1)
    [payment] = decide((payment,), failed, later).states
    assert isinstance(payment, Payment)
    assert (payment.is_open_case, payment.is_finished_since(later + OPEN_MAX)) == (True, False)
    [settled] = decide((payment,), SettleRequested(order_id="o", outcome=outcome, why="x"), later).states
    assert isinstance(settled, Payment)
    assert (settled.is_open_case, settled.refund_status) == (False, refund_status)
    assert settled.is_finished_since(later + OPEN_MAX)
    [reply] = decide((settled,), SettleRequested(order_id="o", outcome=outcome, why="x"), later).events
    assert isinstance(reply, SettleImpossible)


def test_the_payment_shows_how_it_was_settled() -> None:
    """The reason and the time are kept; who it was is in the audit."""
    [payment] = settle(MISSING_REFUND, "refunded").states
    assert isinstance(payment, Payment)
    shown = show(payment)
    assert shown is not None
    assert shown["settled"] == {"outcome": "refunded", "reason": "looked at the dashboard", "at": "2026-01-01T12:00:00.000000Z"}
    assert shown["refunds"][-1]["reason"] == "settled"


@pytest.mark.parametrize("outcome", ["captured", "refunded"])
def test_a_notice_names_the_charge_that_was_settled_without_a_reference(outcome: str) -> None:
    """It is the charge that the person meant; a notice of another one contradicts it."""
    [payment] = settle((RESERVED, NAMELESS, NAMELESS), outcome).states
    assert isinstance(payment, Payment)
    declined = DeclineNotified(order_id="o", reference="pi_declined", amount=EUR, reason="no_funds")
    assert decide((payment,), declined, NOW) == no_change(), "what was declined is not the charge"
    charged = ChargeNotified(order_id="o", reference="pi_late", amount=EUR)
    [named] = decide((payment,), charged, NOW).states
    assert isinstance(named, Payment)
    assert (named.reference, named.status, named.kept) == ("pi_late", payment.status, payment.kept)
    assert decide((named,), charged, NOW) == no_change()
    [rejected] = decide((named,), evolve(charged, reference="pi_other"), NOW).events
    assert isinstance(rejected, NoticeRejected)
    assert rejected.reason == "two_charges"


def test_the_refund_behind_a_settlement_is_counted_once() -> None:
    """The notice of the refund that the person made arrives after the case was settled as refunded."""
    [payment] = settle((RESERVED, NAMELESS, NAMELESS), "refunded").states
    reported = RefundReported(order_id="o", reference="pi_late", refund_reference="re_1", amount=EUR, status="succeeded")
    [named] = decide((payment,), reported, NOW).states
    assert isinstance(named, Payment)
    assert (named.reference, named.refunded, named.kept) == ("pi_late", AMOUNT, 0)
    assert named.ledger is not None
    assert [refund.reference for refund in named.ledger.refunds] == ["re_1"]
