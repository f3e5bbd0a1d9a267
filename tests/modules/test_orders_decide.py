"""The state machine of an order: given these events, when this one arrives, then expect this decision."""

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
    RefundSubmitted,
    created_v1,
    created_v2,
)
from modules.orders.state import Order, Status
from modules.payments.events import (
    PaymentCaptured,
    PaymentDeclined,
    PaymentDelayed,
    PaymentRefunded,
    PaymentRefundFailed,
    PaymentReviewRequired,
)
from modules.values import Address, Line, Money
from tests.modules.saga import NOW, submitted

EUR = Money(250, "EUR")
TIMEOUT = timedelta(minutes=15)
CAPTURED = PaymentCaptured(order_id="o", amount=EUR, reference="r")
DECLINED = PaymentDeclined(order_id="o", amount=EUR, reason="no_funds")
DELAYED = PaymentDelayed(order_id="o")
REVIEW_REQUIRED = PaymentReviewRequired(order_id="o", reason="wrong_amount")
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
    return [type(event) for event in decision.events]


def test_a_submitted_order_is_accepted_and_its_time_out_is_scheduled() -> None:
    """The order is created, and a timer is set."""
    decision = when(None, submitted("o", ("A", 2)))
    [order] = decision.states
    created, timer = decision.events
    assert (order.status, order.items, order.is_final) == (Status.PROCESSING, (Line("A", 2),), False)
    assert created == OrderCreated(order_id="o", customer_id="c-1", items=(Line("A", 2),), version="v2", shipping_address=None)
    assert timer == Scheduled(TIMED_OUT, NOW + TIMEOUT, "timeout:o")


def test_an_order_keeps_what_the_payment_and_the_shipment_need() -> None:
    """The consumers of its event get all of it but the correlation, which every event has."""
    address = Address("1 Main St", "Springfield", "12345", "US")
    event = evolve(
        submitted("o", ("A", 2)),
        payment_method="pm_1",
        payment_customer="cus_1",
        shipping_address=address,
        correlation_id="c-9",
    )
    decision = when(None, event)
    [order] = decision.states
    created = decision.events[0]
    for found in order, created:
        assert (found.payment_method, found.payment_customer, found.shipping_address) == ("pm_1", "cus_1", address)
    assert order.correlation_id == "c-9"


def test_the_older_version_of_an_order_lacks_only_the_address() -> None:
    """A process of the release before charges the same card of the same customer."""
    details = {"payment_method": "pm_1", "payment_customer": "cus_1"}
    created = OrderCreated(order_id="o", customer_id="c", items=(Line("A", 2),), version="v2", shipping_address=None, **details)
    older = created_v1(created)
    assert (older.version, older.payment_method, older.payment_customer) == ("v1", "pm_1", "cus_1")
    assert created_v2(older) == created


def test_lines_of_the_same_product_are_summed() -> None:
    """In the order in which the products appear first."""
    [order] = when(None, submitted("o", ("B", 1), ("A", 2), ("B", 3))).states
    assert order.items == (Line("B", 4), Line("A", 2))


REFUND = RefundSubmitted(order_id="o", refund_id="r1", amount=None, items=(), why="broken")
REFUND_MADE = PaymentRefunded(order_id="o", amount=EUR, reference="r", refund_id="r1")
REFUND_DELAYED = PaymentRefundFailed(order_id="o", amount=EUR, reason="no_balance", is_final=False, refund_id="r1")
REFUND_FAILED = PaymentRefundFailed(order_id="o", amount=EUR, reason="no_balance", is_final=True, refund_id="r1")


@pytest.mark.parametrize(
    ("before", "event"),
    [
        *(((), event) for event in (RESERVED, REJECTED, CAPTURED, DECLINED, DELAYED, REVIEW_REQUIRED, TIMED_OUT, CANCEL)),
        ((RESERVED,), CAPTURED),
        ((CAPTURED,), RESERVED),
        ((RESERVED, CAPTURED), CANCEL),
        ((CANCEL,), RELEASED),
        ((CANCEL,), REFUNDED),
        ((RESERVED, CAPTURED), REFUND),
        ((RESERVED, CAPTURED, REFUND), REFUND_MADE),
        ((RESERVED, CAPTURED, REFUND), REFUND_FAILED),
    ],
)
def test_an_express_order_publishes_in_the_express_lane(before: Sequence[Any], event: Any) -> None:
    """The lane of the event that caused it does not matter: a command and a notice of the gateway have none."""
    order = given(*before)
    assert when(evolve(order, is_express=True), event).express is True
    assert when(order, event).express is False


@pytest.mark.parametrize(
    ("before", "is_finished"),
    [
        ((), False),
        ((RESERVED,), False),
        ((RESERVED, DELAYED), False),
        ((CAPTURED,), False),
        ((RESERVED, CAPTURED), True),
        ((CANCEL,), True),
        ((RESERVED, CAPTURED, REFUND), False),
        ((RESERVED, CAPTURED, REFUND, REFUND_DELAYED), False),
        ((RESERVED, CAPTURED, REFUND, REFUND_FAILED), True),
        ((RESERVED, CAPTURED, REFUND, REFUND_MADE), True),
    ],
)
def test_an_order_is_finished_once_it_is_final_and_no_refund_is_under_way(before: Sequence[Any], is_finished: bool) -> None:
    """From the moment on that follows its last change."""
    order = given(*before)
    assert order.is_finished_since(NOW + timedelta(microseconds=1)) is is_finished
    assert not order.is_finished_since(NOW)


def test_a_reservation_and_then_a_payment_confirm_the_order() -> None:
    """The time-out is cancelled."""
    [reserved] = when(given(), RESERVED).states
    assert (reserved.status, reserved.total_amount, reserved.currency) == (Status.RESERVED, 250, "EUR")
    decision = when(reserved, CAPTURED)
    assert decision.states[0].status is Status.CONFIRMED
    assert decision.events == (
        OrderConfirmed(order_id="o", customer_id="c-1", items=(Line("A", 2),), total=EUR),
        CancelTimer("timeout:o"),
    )


def test_a_payment_and_then_a_reservation_confirm_the_order() -> None:
    """Events overtake each other; the total is that of the reservation."""
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


def test_a_payment_ends_the_wait_for_it() -> None:
    """Also before the reservation: the order has changed then."""
    waiting = evolve(given(DELAYED), updated_at=NOW - timedelta(hours=1))
    [paid] = when(waiting, CAPTURED).states
    assert (waiting.waiting_for, paid.waiting_for, paid.updated_at) == ("payment", None, NOW)


@pytest.mark.parametrize(
    ("event", "name", "detail"),
    [
        (DELAYED, "payments.delayed", None),
        (DECLINED, "orders.cancelled", {"reason": "payment_declined", "detail": {"reason": "no_funds"}}),
        (CANCEL, "orders.cancelled", {"reason": "requested"}),
        (evolve(CANCEL, why="late"), "orders.cancelled", {"reason": "requested", "detail": {"reason": "late"}}),
    ],
)
def test_the_timeline_has_what_has_happened_and_why(event: Any, name: str, detail: dict[str, Any] | None) -> None:
    """An entry has a detail only if the event has a reason or an explanation."""
    [order] = when(given(RESERVED), event).states
    last = order.timeline[-1]
    assert (last["event"], last.get("detail")) == (name, detail)


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
def test_an_order_is_cancelled_with_the_reason_of_the_event(before: Sequence[Any], event: Any, reason: str) -> None:
    """It publishes the cancellation, waits for nothing, and cancels its time-out."""
    decision = when(given(*before), event)
    [order] = decision.states
    assert (order.status, order.reason, order.waiting_for) == (Status.CANCELLED, reason, None)
    assert decision.events == (
        OrderCancelled(order_id="o", customer_id="c-1", items=(Line("A", 2),), reason=reason),
        CancelTimer("timeout:o"),
    )


def test_the_timeline_lists_the_shortages() -> None:
    """With the requested and the available quantity."""
    [order] = when(given(), REJECTED).states
    assert order.timeline[-1]["detail"] == {
        "reason": "insufficient_stock",
        "detail": {"shortages": [{"product_id": "A", "requested": 2, "available": 1}]},
    }


def test_a_confirmed_order_can_still_be_cancelled() -> None:
    """Its time-out has been cancelled before."""
    decision = when(given(RESERVED, CAPTURED), CancelRequested(order_id="o", why="changed my mind"))
    assert decision.states[0].status is Status.CANCELLED
    assert decision.states[0].timeline[-1]["detail"] == {"reason": "requested", "detail": {"reason": "changed my mind"}}
    assert kinds(decision) == [OrderCancelled]


def test_a_second_cancellation_has_no_effect() -> None:
    """It changes nothing and publishes nothing."""
    assert when(given(CANCEL), CANCEL) == Decision()


def test_an_order_that_does_not_exist_is_reported_as_unknown() -> None:
    """The reply reports it; an event about it is unexpected."""
    assert when(None, CANCEL) == Decision((), (OrderUnknown(order_id="o"),))
    with pytest.raises(Unexpected):
        when(None, RESERVED)


def test_a_payment_delay_is_recorded_once() -> None:
    """The order shows that it waits, until the payment arrives."""
    waiting = given(RESERVED, DELAYED)
    assert (waiting.status, waiting.waiting_for) == (Status.RESERVED, "payment")
    assert when(waiting, DELAYED) == Decision()
    [confirmed] = when(waiting, CAPTURED).states
    assert confirmed.waiting_for is None


def test_a_delay_after_the_payment_has_no_effect() -> None:
    """A paid order does not wait for a payment."""
    assert when(given(CAPTURED), DELAYED) == Decision()
    assert when(given(RESERVED, CAPTURED), DELAYED) == Decision()


def test_a_payment_under_review_is_in_the_timeline_with_its_reason() -> None:
    """The order waits for the payment; after the time-out its reason is that the payment was unavailable."""
    [under_review] = when(given(RESERVED), REVIEW_REQUIRED).states
    assert (under_review.status, under_review.waiting_for) == (Status.RESERVED, "payment")
    assert under_review.timeline[-1]["event"] == "payments.put_aside"
    assert under_review.timeline[-1]["detail"] == {"reason": "wrong_amount"}
    assert when(under_review, CAPTURED).states[0].status is Status.CONFIRMED
    assert when(under_review, TIMED_OUT).states[0].reason == "payment_unavailable"
    assert when(given(CAPTURED), REVIEW_REQUIRED) == Decision()
    assert when(given(RESERVED, CAPTURED), REVIEW_REQUIRED) == Decision()


def test_a_refund_made_at_the_provider_is_in_the_timeline() -> None:
    """The order stands. The events may arrive in any order."""
    for before, after in ((RESERVED, CAPTURED), ()), ((RESERVED,), (CAPTURED,)), ((), (CAPTURED, RESERVED)):
        [order] = when(given(*before), REFUNDED).states
        assert order.timeline[-1]["event"] == "payments.refunded"
        for event in after:
            [order] = when(order, event).states
        assert order.status is Status.CONFIRMED


@pytest.mark.parametrize("event", [RESERVED, REJECTED, CAPTURED, DECLINED, DELAYED, REVIEW_REQUIRED, TIMED_OUT], ids=lambda e: type(e).__name__)
def test_a_late_event_does_not_change_a_cancelled_order(event: Any) -> None:
    """Its producer receives the cancellation and undoes what it did."""
    assert when(given(CANCEL), event) == Decision()


@pytest.mark.parametrize(("event", "entry"), [(RELEASED, "inventory.released"), (REFUNDED, "payments.refunded")])
def test_a_compensation_is_in_the_timeline_of_a_cancelled_order(event: Any, entry: str) -> None:
    """It changes nothing else."""
    decision = when(given(CANCEL), event)
    assert decision.states[0].timeline[-1]["event"] == entry
    assert decision.states[0].status is Status.CANCELLED
    assert decision.events == ()


@pytest.mark.parametrize("event", [TIMED_OUT, RESERVED, CAPTURED], ids=lambda e: type(e).__name__)
def test_a_stale_event_does_not_change_a_confirmed_order(event: Any) -> None:
    """It can no longer time out."""
    assert when(given(RESERVED, CAPTURED), event) == Decision()


IMPOSSIBLE: list[tuple[Callable[[], Order], Any]] = [
    (lambda: given(RESERVED), REJECTED),
    (lambda: given(), RELEASED),
    (lambda: given(RESERVED, CAPTURED), DECLINED),
]


@pytest.mark.parametrize(("order", "event"), IMPOSSIBLE)
def test_an_impossible_event_is_unexpected(order: Callable[[], Order], event: Any) -> None:
    """It becomes a dead letter and needs review."""
    with pytest.raises(Unexpected, match=f"^{type(event).__name__} (while|for an order that does not exist)"):
        when(order(), event)


def test_an_event_for_an_order_that_does_not_exist_is_unexpected() -> None:
    """The dead letter names the event."""
    with pytest.raises(Unexpected, match=r"^StockReserved for an order that does not exist$"):
        when(None, RESERVED)


def test_the_timeline_of_an_order_never_goes_back_in_time() -> None:
    """Two processes that decide about one order may have clocks that differ by some milliseconds."""
    early = NOW - timedelta(milliseconds=3)
    [order] = decide((given(),), RESERVED, early, timeout=TIMEOUT).states
    assert order.updated_at == NOW
    assert [entry["at"] for entry in order.timeline] == sorted(entry["at"] for entry in order.timeline)
