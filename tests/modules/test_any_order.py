"""Whatever the order of the events, and however often they arrive: every order reaches a legal final state."""

from __future__ import annotations

from uuid import UUID

from attrs import evolve
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from modules.inventory.state import Product
from modules.orders.events import CancelRequested
from tests.examples import examples
from tests.modules.saga import GATEWAY, CallOutcome, FakeGateway, Saga, submitted

STEPS_MAX = 500
IDS = [str(UUID(int=(1 << 100) + n)) for n in range(3)]
LINES = st.lists(st.tuples(st.sampled_from(["A", "B", "B", "A", "Z", "D"]), st.integers(1, 3)), min_size=1, max_size=3)
PATIENT = settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@st.composite
def sagas(draw: st.DrawFn) -> Saga:
    """Draw the stock, one to three orders, of which the gateway may decline one, and cancellations of any of them."""
    products = {"A": (draw(st.integers(0, 5)), "EUR"), "B": (draw(st.integers(0, 5)), "EUR"), "D": (5, "USD")}
    stock = {
        key: Product(product_id=key, name=None, on_hand=count, reserved=0, unit_price_amount=100, currency=currency)
        for key, (count, currency) in products.items()
    }
    ids = IDS[: draw(st.integers(1, 3))]
    saga = Saga(FakeGateway(frozenset(draw(st.sets(st.sampled_from(ids), max_size=1)))), stock)
    for order_id in ids:
        placed = evolve(submitted(order_id, *draw(LINES)), is_express=draw(st.booleans()))
        saga.send("orders", order_id, placed)
    for n, order_id in enumerate(draw(st.lists(st.sampled_from(ids), max_size=3))):
        saga.send("orders", f"cancel-{n}", CancelRequested(order_id=order_id, why=None))
    return saga


def deliver_all(saga: Saga, data: st.DataObject, repeats: int, *, gateway_repeats: bool) -> None:
    """Deliver until no message is in flight, in any order; deliver *repeats* of the messages again at any later time."""
    failures = 4

    def draw() -> CallOutcome:
        nonlocal failures
        if not failures:
            return CallOutcome.OK
        drawn: CallOutcome = data.draw(st.sampled_from(CallOutcome))
        failures -= drawn is not CallOutcome.OK
        return drawn

    for _ in range(STEPS_MAX):
        if not saga.in_flight:
            break
        index = data.draw(st.integers(0, len(saga.in_flight) - 1))
        may_repeat = repeats > 0 and (gateway_repeats or saga.in_flight[index].consumer != GATEWAY)
        is_kept = may_repeat and data.draw(st.booleans())
        repeats -= is_kept
        saga.deliver(index, draw, is_kept=is_kept)
        note(saga.history[-1])
    assert not saga.in_flight, f"the saga does not end: {saga.history[-10:]}"
    saga.check_final_state()


@PATIENT
@given(saga=sagas(), data=st.data())
def test_every_order_reaches_a_legal_final_state_whatever_the_order_of_events(saga: Saga, data: st.DataObject) -> None:
    """
    No event depends on another arriving first: stock is conserved, and each charge is made once or not at all.

    An express order keeps its lane, whatever the lane in which a message about it arrives.
    """
    deliver_all(saga, data, repeats=0, gateway_repeats=False)


@PATIENT
@given(saga=sagas(), data=st.data())
def test_a_duplicate_message_changes_nothing(saga: Saga, data: st.DataObject) -> None:
    """The inbox recognises its id, however late it arrives."""
    deliver_all(saga, data, repeats=12, gateway_repeats=False)


@PATIENT
@given(saga=sagas(), data=st.data())
def test_a_repeated_request_to_the_gateway_moves_no_money_twice(saga: Saga, data: st.DataObject) -> None:
    """A worker that is killed between its call and its commit calls again, and the amounts still match."""
    deliver_all(saga, data, repeats=12, gateway_repeats=True)


@settings(max_examples=examples(30), deadline=None)
@given(data=st.data())
def test_the_last_pieces_are_sold_once(data: st.DataObject) -> None:
    """Three orders for the same two products, in opposite order of lines, for stock that is enough for two."""
    stock = {
        key: Product(product_id=key, name=None, on_hand=2, reserved=0, unit_price_amount=1, currency="EUR") for key in "AB"
    }
    saga = Saga(FakeGateway(), stock)
    for n, order_id in enumerate(IDS):
        lines = [("A", 1), ("B", 1)]
        saga.send("orders", order_id, submitted(order_id, *(lines if n % 2 else lines[::-1])))
    for _ in range(STEPS_MAX):
        # No order times out: the timers stay in the outbox.
        due = [index for index, message in enumerate(saga.in_flight) if message.is_due]
        if not due:
            break
        saga.deliver(data.draw(st.sampled_from(due)), lambda: CallOutcome.OK)
    assert {saga.states[Product, key].on_hand for key in "AB"} == {0}
    assert sorted(saga.gateway.charged.values()) == [2, 2]
