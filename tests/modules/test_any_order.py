"""Whatever order the news comes in, and however often: every order ends, and ends in a legal state."""

from __future__ import annotations

from uuid import UUID

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from modules.inventory.state import Product
from modules.orders.events import CancelRequested
from tests.modules.saga import GATEWAY, Books, Saga, Weather, submitted

STEPS_MAX = 500
IDS = [str(UUID(int=(1 << 100) + n)) for n in range(3)]
LINES = st.lists(st.tuples(st.sampled_from(["A", "B", "B", "A", "Z", "D"]), st.integers(1, 3)), min_size=1, max_size=3)
SLOWLY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@st.composite
def sagas(draw: st.DrawFn) -> Saga:
    """Draw some stock, one to three orders, whose money the gateway may refuse, and cancellations of any of them."""
    shelf = {"A": (draw(st.integers(0, 5)), "EUR"), "B": (draw(st.integers(0, 5)), "EUR"), "D": (5, "USD")}
    stock = {
        key: Product(product_id=key, name=None, on_hand=count, reserved=0, unit_price_amount=100, currency=currency)
        for key, (count, currency) in shelf.items()
    }
    ids = IDS[: draw(st.integers(1, 3))]
    saga = Saga(Books(frozenset(draw(st.sets(st.sampled_from(ids), max_size=1)))), stock)
    for order_id in ids:
        saga.tell("orders", order_id, submitted(order_id, *draw(LINES)))
    for n, order_id in enumerate(draw(st.lists(st.sampled_from(ids), max_size=3))):
        saga.tell("orders", f"cancel-{n}", CancelRequested(order_id=order_id, why=None))
    return saga


def see_through(saga: Saga, data: st.DataObject, repeats: int, *, gateway_repeats: bool) -> None:
    """Deliver until the bag is empty: any message next, *repeats* of them again at any later time."""
    troubles = 4

    def weather() -> Weather:
        nonlocal troubles
        if not troubles:
            return Weather.FINE
        drawn: Weather = data.draw(st.sampled_from(Weather))
        troubles -= drawn is not Weather.FINE
        return drawn

    for _ in range(STEPS_MAX):
        if not saga.bag:
            break
        index = data.draw(st.integers(0, len(saga.bag) - 1))
        may_stay = repeats > 0 and (gateway_repeats or saga.bag[index].to != GATEWAY)
        stays = may_stay and data.draw(st.booleans())
        repeats -= stays
        saga.deliver(index, weather, stays=stays)
        note(saga.history[-1])
    assert not saga.bag, f"it goes round and round: {saga.history[-10:]}"
    saga.check_the_end()


@SLOWLY
@given(saga=sagas(), data=st.data())
def test_every_order_ends_legally_in_whatever_order_the_news_comes(saga: Saga, data: st.DataObject) -> None:
    """Nothing has to come before anything else: stock is conserved, money is taken once or not at all."""
    see_through(saga, data, repeats=0, gateway_repeats=False)


@SLOWLY
@given(saga=sagas(), data=st.data())
def test_a_message_that_comes_again_under_its_id_changes_nothing(saga: Saga, data: st.DataObject) -> None:
    """Copies that the inbox knows have no effect, whenever they come."""
    see_through(saga, data, repeats=12, gateway_repeats=False)


@SLOWLY
@given(saga=sagas(), data=st.data())
def test_asking_the_gateway_again_moves_no_money_twice(saga: Saga, data: st.DataObject) -> None:
    """A worker that is killed between its call and its record calls again, and the books still balance."""
    see_through(saga, data, repeats=12, gateway_repeats=True)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_last_pieces_are_sold_once(data: st.DataObject) -> None:
    """Three orders for the same two products, in opposite order of lines, for stock that is enough for two."""
    stock = {
        key: Product(product_id=key, name=None, on_hand=2, reserved=0, unit_price_amount=1, currency="EUR") for key in "AB"
    }
    saga = Saga(Books(), stock)
    for n, order_id in enumerate(IDS):
        lines = [("A", 1), ("B", 1)]
        saga.tell("orders", order_id, submitted(order_id, *(lines if n % 2 else lines[::-1])))
    for _ in range(STEPS_MAX):
        # Nobody's time runs out: what is not due stays in the outbox.
        due = [index for index, flying in enumerate(saga.bag) if flying.is_due]
        if not due:
            break
        saga.deliver(data.draw(st.sampled_from(due)), lambda: Weather.FINE)
    assert {saga.world[Product, key].on_hand for key in "AB"} == {0}
    assert sorted(saga.books.charged.values()) == [2, 2]
