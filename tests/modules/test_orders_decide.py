"""What follows from what, for an order: given, when, then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from modules.inventory.events import Shortage, StockRejected, StockReleased, StockReserved
from modules.module import CancelTimer, Decision, Scheduled, Unexpected
from modules.orders.decide import decide
from modules.orders.events import (
    CancelRequested,
    OrderCancelled,
    OrderConfirmed,
    OrderCreated,
    OrderTimedOut,
    OrderUnknown,
)
from modules.orders.state import Order, Status
from modules.payments.events import (
    PaymentCaptured,
    PaymentDeclined,
    PaymentDelayed,
    PaymentRefunded,
    PaymentReviewRequired,
)
from modules.values import Line, Money
from tests.modules.saga import NOW, submitted

EUR = Money(250, "EUR")
TIMEOUT = timedelta(minutes=15)
CAPTURED = PaymentCaptured(order_id="o", amount=EUR, reference="r")
DECLINED = PaymentDeclined(order_id="o", amount=EUR, reason="no_funds")
DELAYED = PaymentDelayed(order_id="o")
PUT_ASIDE = PaymentReviewRequired(order_id="o", reason="wrong_amount")
REFUNDED = PaymentRefunded(order_id="o", amount=EUR, reference="r")
RESERVED = StockReserved(order_id="o", lines=(), total=EUR)
REJECTED = StockRejected(order_id="o", reason="insufficient_stock", shortages=(Shortage("A", 2, 1),))
UNKNOWN_PRODUCT = StockRejected(order_id="o", reason="unknown_product", shortages=(Shortage("A", 2, 1),))
RELEASED = StockReleased(order_id="o", lines=())
TIMED_OUT = OrderTimedOut(order_id="o")
CANCEL = CancelRequested(order_id="o", why=None)


def when(order: Order | None, event: Any) -> Decision:
    return decide((order,), event, NOW, timeout=TIMEOUT)


def given(*events: Any) -> Order:
    """Return the order after *events*, the first of which is its submission."""
    order: Order | None = None
    for event in (submitted("o", ("A", 2)), *events):
        decision = when(order, event)
        order = decision.states[0] if decision.states else order
    assert order is not None
    return order


def kinds(decision: Decision) -> list[type]:
    return [type(said) for said in decision.events]


def test_an_order_is_accepted_and_its_time_runs() -> None:
    """It says so, and tells itself when its time will be up."""
    decision = when(None, submitted("o", ("A", 2)))
    [order] = decision.states
    created, timer = decision.events
    assert (order.status, order.items, order.is_final) == (Status.PROCESSING, (Line("A", 2),), False)
    assert created == OrderCreated(order_id="o", customer_id="c-1", items=(Line("A", 2),), version="v2", shipping_address=None)
    assert timer == Scheduled(TIMED_OUT, NOW + TIMEOUT, "timeout:o")


def test_the_same_product_on_two_lines_is_summed() -> None:
    """In the order in which the products were first named."""
    [order] = when(None, submitted("o", ("B", 1), ("A", 2), ("B", 3))).states
    assert order.items == (Line("B", 4), Line("A", 2))


def test_an_express_order_stays_express() -> None:
    """Whatever lane the news of it came by."""
    order = evolve(given(), is_express=True)
    assert when(order, RESERVED).express is True
    assert when(given(), RESERVED).express is False


def test_stock_then_money_confirms() -> None:
    """And stops the clock."""
    [reserved] = when(given(), RESERVED).states
    assert (reserved.status, reserved.total_amount, reserved.currency) == (Status.RESERVED, 250, "EUR")
    decision = when(reserved, CAPTURED)
    assert decision.states[0].status is Status.CONFIRMED
    assert decision.events == (
        OrderConfirmed(order_id="o", customer_id="c-1", items=(Line("A", 2),), total=EUR),
        CancelTimer("timeout:o"),
    )


def test_money_then_stock_confirms_too() -> None:
    """News overtakes news; the total is the one that stock was held for."""
    paid = given(CAPTURED)
    assert (paid.status, paid.is_paid) == (Status.PROCESSING, True)
    decision = when(paid, RESERVED)
    assert decision.states[0].status is Status.CONFIRMED
    assert kinds(decision) == [OrderConfirmed, CancelTimer]
    assert [entry["event"] for entry in decision.states[0].timeline] == [
        "orders.created",
        "inventory.reserved",
        "orders.confirmed",
    ]


@pytest.mark.parametrize(
    ("before", "event", "reason"),
    [
        ((), REJECTED, "insufficient_stock"),
        ((), UNKNOWN_PRODUCT, "unknown_product"),
        ((), DECLINED, "payment_declined"),
        ((RESERVED,), DECLINED, "payment_declined"),
        ((), TIMED_OUT, "timed_out"),
        ((RESERVED,), TIMED_OUT, "timed_out"),
        ((RESERVED, DELAYED), TIMED_OUT, "payment_unavailable"),
        ((), CANCEL, "requested"),
        ((RESERVED,), CANCEL, "requested"),
    ],
)
def test_an_order_ends_for_one_reason(before: Sequence[Any], event: Any, reason: str) -> None:
    """It says that it is off, waits for nothing, and its clock stops."""
    decision = when(given(*before), event)
    [order] = decision.states
    assert (order.status, order.reason, order.waiting_for) == (Status.CANCELLED, reason, None)
    assert decision.events == (
        OrderCancelled(order_id="o", customer_id="c-1", items=(Line("A", 2),), reason=reason),
        CancelTimer("timeout:o"),
    )


def test_the_timeline_says_what_was_short() -> None:
    """The client reads which line it was, and how many there are."""
    [order] = when(given(), REJECTED).states
    assert order.timeline[-1]["detail"] == {
        "reason": "insufficient_stock",
        "detail": {"shortages": [{"product_id": "A", "requested": 2, "available": 1}]},
    }


def test_a_confirmed_order_can_still_be_cancelled() -> None:
    """Its clock has stopped before."""
    decision = when(given(RESERVED, CAPTURED), CancelRequested(order_id="o", why="changed my mind"))
    assert decision.states[0].status is Status.CANCELLED
    assert decision.states[0].timeline[-1]["detail"] == {"reason": "requested", "detail": {"reason": "changed my mind"}}
    assert kinds(decision) == [OrderCancelled]


def test_cancelled_twice_is_cancelled_once() -> None:
    """The second request changes nothing and says nothing."""
    assert when(given(CANCEL), CANCEL) == Decision()


def test_nobody_knows_an_order_that_was_never_placed() -> None:
    """Whoever asks hears it; news about it must not exist."""
    assert when(None, CANCEL) == Decision((), (OrderUnknown(order_id="o"),))
    with pytest.raises(Unexpected):
        when(None, RESERVED)


def test_a_delay_is_noted_once() -> None:
    """The order says what it waits for, until it need not."""
    waiting = given(RESERVED, DELAYED)
    assert (waiting.status, waiting.waiting_for) == (Status.RESERVED, "payment")
    assert when(waiting, DELAYED) == Decision()
    [confirmed] = when(waiting, CAPTURED).states
    assert confirmed.waiting_for is None


def test_a_delay_heard_after_the_money_is_old_news() -> None:
    """An order that is paid does not wait for payment."""
    assert when(given(CAPTURED), DELAYED) == Decision()
    assert when(given(RESERVED, CAPTURED), DELAYED) == Decision()


def test_what_was_put_aside_stands_in_the_timeline_with_its_reason() -> None:
    """The order waits for a person, and says so; when its time is up the payment was unavailable."""
    [aside] = when(given(RESERVED), PUT_ASIDE).states
    assert (aside.status, aside.waiting_for) == (Status.RESERVED, "payment")
    assert aside.timeline[-1]["event"] == "payments.put_aside"
    assert aside.timeline[-1]["detail"] == {"reason": "wrong_amount"}
    assert when(aside, CAPTURED).states[0].status is Status.CONFIRMED
    assert when(aside, TIMED_OUT).states[0].reason == "payment_unavailable"
    assert when(given(CAPTURED), PUT_ASIDE) == Decision()
    assert when(given(RESERVED, CAPTURED), PUT_ASIDE) == Decision()


def test_a_refund_that_nobody_asked_for_is_noted() -> None:
    """Somebody gave the money back at the provider; the order stands, and its timeline tells. News comes in any order."""
    for before, after in ((RESERVED, CAPTURED), ()), ((RESERVED,), (CAPTURED,)), ((), (CAPTURED, RESERVED)):
        [order] = when(given(*before), REFUNDED).states
        assert order.timeline[-1]["event"] == "payments.refunded"
        for event in after:
            [order] = when(order, event).states
        assert order.status is Status.CONFIRMED


@pytest.mark.parametrize("event", [RESERVED, REJECTED, CAPTURED, DECLINED, DELAYED, PUT_ASIDE, TIMED_OUT], ids=lambda e: type(e).__name__)
def test_late_news_about_a_cancelled_order_changes_nothing(event: Any) -> None:
    """Whoever did something for it hears the cancellation and undoes it."""
    assert when(given(CANCEL), event) == Decision()


@pytest.mark.parametrize(("event", "entry"), [(RELEASED, "inventory.released"), (REFUNDED, "payments.refunded")])
def test_what_was_undone_stands_in_the_timeline(event: Any, entry: str) -> None:
    """And nowhere else."""
    decision = when(given(CANCEL), event)
    assert decision.states[0].timeline[-1]["event"] == entry
    assert decision.states[0].status is Status.CANCELLED
    assert decision.events == ()


@pytest.mark.parametrize("event", [TIMED_OUT, RESERVED, CAPTURED], ids=lambda e: type(e).__name__)
def test_a_confirmed_order_ignores_old_news(event: Any) -> None:
    """Its time cannot run out any more."""
    assert when(given(RESERVED, CAPTURED), event) == Decision()


IMPOSSIBLE: list[tuple[Callable[[], Order], Any]] = [
    (lambda: given(RESERVED), REJECTED),
    (lambda: given(), RELEASED),
    (lambda: given(RESERVED, CAPTURED), DECLINED),
]


@pytest.mark.parametrize(("order", "event"), IMPOSSIBLE)
def test_what_cannot_be_is_unexpected(order: Callable[[], Order], event: Any) -> None:
    """Nobody guesses: it becomes a dead letter, and a person looks."""
    with pytest.raises(Unexpected):
        when(order(), event)


def test_an_order_goes_only_forward_in_time() -> None:
    """Where two processes decide about one order, their clocks differ by some milliseconds; its timeline does not go back."""
    early = NOW - timedelta(milliseconds=3)
    [order] = decide((given(),), RESERVED, early, timeout=TIMEOUT).states
    assert order.updated_at == NOW
    assert [entry["at"] for entry in order.timeline] == sorted(entry["at"] for entry in order.timeline)
