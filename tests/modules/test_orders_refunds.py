"""Refunds of an order: by amount, by items at the prices of the order, or all that is left; never more than that."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from modules.inventory.events import PricedLine, StockReserved
from modules.module import Decision, evolve
from modules.orders.decide import decide
from modules.orders.events import CancelRequested, OrderRefundRequested, OrderUnknown, RefundImpossible, RefundSubmitted
from modules.orders.refunds import REFUNDS_MAX
from modules.orders.routes import show
from modules.orders.state import Order
from modules.payments.events import PaymentCaptured, PaymentRefunded, PaymentRefundFailed
from modules.values import Line, Money, rfc3339
from tests.modules.saga import NOW, submitted

LINES = (PricedLine("A", 2, Money(300, "EUR")), PricedLine("B", 1, Money(400, "EUR")))
RESERVED = StockReserved(order_id="o", lines=LINES, total=Money(1000, "EUR"))
CAPTURED = PaymentCaptured(order_id="o", amount=Money(1000, "EUR"), reference="r")


def eur(amount: int) -> Money:
    return Money(amount, "EUR")


def refund(id: str = "r1", amount: Money | None = None, *items: tuple[str, int]) -> RefundSubmitted:
    lines = tuple(Line(product_id, quantity) for product_id, quantity in items)
    return RefundSubmitted(order_id="o", refund_id=id, amount=amount, items=lines, why="broken")


def when(order: Order | None, event: Any) -> Decision:
    return decide((order,), event, NOW, timeout=timedelta(minutes=15))


def given(*events: Any) -> Order:
    """Return the order after *events*, which follow its submission."""
    order: Order | None = None
    for event in (submitted("o", ("A", 2), ("B", 1)), *events):
        [order] = when(order, event).states or (order,)
    assert order is not None
    return order


def refused(order: Order, event: Any) -> str:
    """Return the code of the rejection of *event*, which changes nothing."""
    decision = when(order, event)
    assert decision.states == ()
    [reply] = decision.events
    assert isinstance(reply, RefundImpossible)
    return reply.code


@pytest.mark.parametrize(
    ("asked", "amount"),
    [
        (refund("r1", eur(400)), 400),
        (refund("r1", eur(1000)), 1000),
        (refund("r1", None, ("A", 1)), 300),
        (refund("r1", None, ("A", 2), ("B", 1)), 1000),
        (refund("r1", None, ("A", 1), ("A", 1)), 600),
        (refund("r1"), 1000),
    ],
)
def test_a_refund_of_a_paid_order_is_requested(asked: RefundSubmitted, amount: int) -> None:
    """By amount, by items, or all that is left."""
    decision = when(given(RESERVED, CAPTURED), asked)
    assert decision.events == (OrderRefundRequested(order_id="o", refund_id="r1", amount=eur(amount), reason="broken"),)
    assert decision.states[0].timeline[-1]["event"] == "orders.refund_requested"
    assert show(decision.states[0])["refunds"][0]["amount"] == {"amount": amount, "currency": "EUR"}


@pytest.mark.parametrize(
    ("earlier", "asked", "code"),
    [
        ([], refund("x", eur(1001)), "exceeds_left"),
        ([refund("r1", eur(400))], refund("x", eur(601)), "exceeds_left"),
        ([refund("r1")], refund("x"), "exceeds_left"),
        ([refund("r1", None, ("A", 1))], refund("x", None, ("A", 2)), "exceeds_left"),
        ([], refund("x", None, ("A", 3)), "exceeds_left"),
        ([], refund("x", None, ("Z", 1)), "exceeds_left"),
        ([refund("r1", eur(800))], refund("x", None, ("A", 1)), "exceeds_left"),
        ([PaymentRefunded(order_id="o", amount=eur(400), reference="r", kept=eur(600))], refund("x", eur(601)), "exceeds_left"),
        ([], refund("x", Money(1, "USD")), "wrong_currency"),
        ([CancelRequested(order_id="o", why=None)], refund("x", eur(1)), "order_cancelled"),
    ],
)
def test_more_than_is_left_is_refused(earlier: list[Any], asked: RefundSubmitted, code: str) -> None:
    """What was asked for counts before it is made, and so does what was refunded at the provider."""
    assert refused(given(RESERVED, CAPTURED, *earlier), asked) == code


def test_what_is_not_paid_cannot_be_refunded() -> None:
    """Nor an order that does not exist, nor by items where the prices are not known, nor forever."""
    assert refused(given(RESERVED), refund()) == "not_paid"
    assert when(None, refund()).events == (OrderUnknown(order_id="o"),)
    old = given(StockReserved(order_id="o", lines=LINES, total=eur(1000)), CAPTURED)
    object.__setattr__(old, "unit_prices", None)
    assert refused(old, refund("x", None, ("A", 1))) == "prices_unknown"
    many = given(RESERVED, CAPTURED, *(refund(f"r{n}", eur(1)) for n in range(REFUNDS_MAX)))
    assert refused(many, refund("x", eur(1))) == "too_many_refunds"


def test_the_order_shows_the_state_of_its_refunds() -> None:
    """A refund that failed finally can be asked for again; one that is tried again is pending."""
    made = PaymentRefunded(order_id="o", amount=eur(400), reference="b", kept=eur(600), refund_id="r1")
    order = given(RESERVED, CAPTURED, refund("r1", eur(400)), made)
    assert show(order)["refunded"] == {"amount": 400, "currency": "EUR"}
    assert [each["status"] for each in show(order)["refunds"]] == ["succeeded"]
    failed = PaymentRefundFailed(order_id="o", amount=eur(400), reason="no_balance", is_final=False, refund_id="r1")
    asked = given(RESERVED, CAPTURED, refund("r1", eur(1000)))
    assert when(asked, failed).states == ()
    assert when(given(RESERVED, CAPTURED, refund("r1", eur(400)), made), failed).states == (), "it is about an earlier attempt"
    back = PaymentRefundFailed(
        order_id="o", amount=eur(400), reason="closed", is_final=False, refund_id="r1", has_returned=True
    )
    assert [each["status"] for each in show(given(RESERVED, CAPTURED, refund("r1", eur(400)), made, back))["refunds"]] == ["pending"]
    final = PaymentRefundFailed(order_id="o", amount=eur(1000), reason="no_balance", is_final=True, refund_id="r1")
    [order] = when(asked, final).states
    assert (show(order)["refunds"][0]["status"], show(order)["refunds"][0]["failure"]) == ("failed", "no_balance")
    assert order.refundable == 1000
    assert "refunded" not in show(given(RESERVED, CAPTURED))


def test_the_refund_of_an_order_that_was_cancelled_before_its_reservation_has_a_currency() -> None:
    """The reservation of such an order is never recorded, so only the refund names the currency."""
    made = PaymentRefunded(order_id="o", amount=eur(1000), reference="b")
    shown = show(given(CancelRequested(order_id="o", why=None), made, RESERVED))
    assert (shown["total"], shown["refunded"]) == (None, {"amount": 1000, "currency": "EUR"})
    assert [each["amount"] for each in shown["refunds"]] == [{"amount": 1000, "currency": "EUR"}]


def test_money_that_comes_back_is_no_longer_shown_as_refunded() -> None:
    """A refund of the cancellation or of the provider's dashboard that fails after it succeeded counts once it is repeated."""
    made = PaymentRefunded(order_id="o", amount=eur(1000), reference="b")
    back = PaymentRefundFailed(order_id="o", amount=eur(1000), reason="closed", is_final=False, has_returned=True)
    cancelled = given(RESERVED, CAPTURED, CancelRequested(order_id="o", why=None), made)
    [order] = when(cancelled, back).states
    assert show(order)["refunded"] == {"amount": 0, "currency": "EUR"}
    assert [(each["status"], each["failure"]) for each in show(order)["refunds"]] == [("failed", "closed")]
    [order] = when(order, made).states
    assert show(order)["refunded"] == {"amount": 1000, "currency": "EUR"}
    part = PaymentRefundFailed(order_id="o", amount=eur(300), reason="closed", is_final=True, has_returned=True)
    [order] = when(given(RESERVED, CAPTURED, made), part).states
    assert [(each["amount"], each["status"]) for each in order.refunds or ()] == [(700, "succeeded"), (300, "failed")]
    assert order.refundable == 300
    never = PaymentRefundFailed(order_id="o", amount=eur(300), reason="no_balance", is_final=False)
    assert when(given(RESERVED, CAPTURED, made), never).states == ()


def test_money_that_comes_back_is_that_of_the_newest_refund_that_no_client_requested() -> None:
    """What a client requested has an id, and what has failed has come back before: both stay as they are."""
    requested = PaymentRefunded(order_id="o", amount=eur(400), reference="a", refund_id="r1")
    order = given(RESERVED, CAPTURED, *(PaymentRefunded(order_id="o", amount=eur(n), reference=f"{n}") for n in (100, 200)))
    for event in refund("r1", eur(400)), requested:
        [order] = when(order, event).states
    for amount, shown in (
        (250, [(50, "succeeded"), (50, "failed"), (200, "failed"), (400, "succeeded")]),
        (50, [(50, "failed"), (50, "failed"), (200, "failed"), (400, "succeeded")]),
    ):
        back = PaymentRefundFailed(order_id="o", amount=eur(amount), reason="closed", is_final=True, has_returned=True)
        [order] = when(order, back).states
        assert [(each["amount"], each["status"]) for each in order.refunds or ()] == shown


@pytest.mark.parametrize("is_final", [True, False])
def test_more_than_one_refund_comes_back_at_once(is_final: bool) -> None:
    """What is above the refund that the provider names is of the refunds that no client requested."""
    made = PaymentRefunded(order_id="o", amount=eur(400), reference="a", refund_id="r1")
    order = given(RESERVED, CAPTURED, refund("r1", eur(400)), made, PaymentRefunded(order_id="o", amount=eur(300), reference="b"))
    back = PaymentRefundFailed(
        order_id="o", amount=eur(401), reason="closed", is_final=is_final, refund_id="r1", has_returned=True
    )
    later = NOW + timedelta(hours=1)
    [order] = decide((order,), back, later, timeout=timedelta(minutes=15)).states
    shown = [(400, "failed" if is_final else "pending"), (299, "succeeded"), (1, "failed")]
    assert [(each["amount"], each["status"]) for each in order.refunds or ()] == shown
    assert order.updated_at == later


def test_a_refund_that_failed_finally_is_in_the_timeline() -> None:
    """With its amount and reason; the other refunds of the order stay, and the order stays in its lane."""
    order = evolve(given(RESERVED, CAPTURED, refund("r1", eur(100))), is_express=True)
    failed = PaymentRefundFailed(order_id="o", amount=eur(300), reason="no_balance", is_final=True)
    detail = {"amount": {"amount": 300, "currency": "EUR"}, "reason": "no_balance"}
    entry = {"event": "payments.refund_failed", "at": rfc3339(NOW), "detail": detail}
    assert when(order, failed) == Decision((evolve(order, timeline=(*order.timeline, entry)),), (), True)


def test_a_refund_shows_the_amount_that_was_paid_back() -> None:
    """The provider's word counts, also if it is not what was requested."""
    paid_back = PaymentRefunded(order_id="o", amount=eur(300), reference="a", refund_id="r1")
    order = given(RESERVED, CAPTURED, refund("r1", eur(400)), paid_back)
    assert [(each["amount"], each["status"]) for each in order.refunds or ()] == [(300, "succeeded")]


def test_a_refund_keeps_what_was_asked_for() -> None:
    """The timeline and the order show the amount, the reason and the time."""
    order = given(RESERVED, CAPTURED, refund("r1", eur(400)))
    assert order.timeline[-1] == {
        "event": "orders.refund_requested", "at": rfc3339(NOW),
        "detail": {"amount": {"amount": 400, "currency": "EUR"}, "reason": "broken"},
    }  # fmt: skip
    assert order.refunds == (
        {"refund_id": "r1", "amount": 400, "status": "pending", "reason": "broken", "at": rfc3339(NOW)},
    )


def test_the_timeline_has_what_was_refunded_and_what_is_kept() -> None:
    """Without an amount that is kept, everything went back, and no detail is needed."""
    made = PaymentRefunded(order_id="o", amount=eur(400), reference="b", kept=eur(600), refund_id="r1")
    order = given(RESERVED, CAPTURED, refund("r1", eur(400)), made)
    assert order.timeline[-1] == {
        "event": "payments.refunded", "at": rfc3339(NOW),
        "detail": {"amount": {"amount": 400, "currency": "EUR"}, "kept": {"amount": 600, "currency": "EUR"}},
    }  # fmt: skip


def test_items_can_be_refunded_again_after_a_refund_that_failed() -> None:
    """Those of all other refunds count, each by itself."""
    failed = PaymentRefundFailed(order_id="o", amount=eur(600), reason="closed", is_final=True, refund_id="r1")
    assert when(given(RESERVED, CAPTURED, refund("r1", None, ("A", 2)), failed), refund("x", None, ("A", 2))).states
    two = given(RESERVED, CAPTURED, refund("r1", None, ("A", 1)), refund("r2", None, ("A", 1)))
    assert refused(two, refund("x", None, ("A", 1))) == "exceeds_left"


def test_a_rejection_names_its_order_and_what_is_wrong() -> None:
    [reply] = when(given(RESERVED, CAPTURED), refund("x", eur(1001))).events
    assert (reply.order_id, reply.detail) == ("o", "Of the payment 1000 minor units are left to be refunded.")
