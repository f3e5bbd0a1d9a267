"""What follows from what, on the shelf: given, when, then."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from modules.inventory.decide import decide, keys
from modules.inventory.events import (
    BelowReserved,
    PricedLine,
    ProductSet,
    ProductUnknown,
    Restocked,
    Shortage,
    StockRejected,
    StockReleased,
    StockReserved,
)
from modules.inventory.state import Product, Reservation, ReservationStatus
from modules.module import Decision, Unexpected
from modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated
from modules.values import Line, Money
from tests.modules.saga import NOW

ITEMS = (Line("A", 2), Line("B", 1))
CREATED = OrderCreated(order_id="o", customer_id="c", items=ITEMS, version="v2", shipping_address=None, payment_method="pm")
CONFIRMED = OrderConfirmed(order_id="o", customer_id="c", items=ITEMS, total=Money(700, "EUR"))
CANCELLED = OrderCancelled(order_id="o", customer_id="c", items=ITEMS, reason="requested")
HELD = Reservation(order_id="o", status=ReservationStatus.HELD, lines=ITEMS)


def product(key: str, on_hand: int = 10, reserved: int = 0, price: int = 100, currency: str = "EUR") -> Product:
    return Product(
        product_id=key, name=key, on_hand=on_hand, reserved=reserved, unit_price_amount=price, currency=currency
    )


def when(event: Any, *states: Any) -> Decision:
    return decide(states, event, NOW)


def test_an_order_touches_its_reservation_and_each_of_its_products() -> None:
    """And a count touches its product."""
    assert keys(CREATED) == ((Reservation, "o"), (Product, "A"), (Product, "B"))
    assert keys(Restocked(product_id="A", quantity=1)) == ((Product, "A"),)


def test_all_lines_are_held_at_their_prices() -> None:
    """What is held stays on hand; the total is the sum of the lines."""
    decision = when(CREATED, None, product("A", price=100), product("B", price=500))
    assert decision.states == (HELD, product("A", reserved=2, price=100), product("B", reserved=1, price=500))
    assert decision.events == (
        StockReserved(
            order_id="o",
            lines=(PricedLine("A", 2, Money(100, "EUR")), PricedLine("B", 1, Money(500, "EUR"))),
            total=Money(700, "EUR"),
            payment_method="pm",
        ),
    )


def test_the_last_piece_is_held_and_the_next_order_is_short() -> None:
    """Held pieces are not available to others."""
    assert isinstance(when(CREATED, None, product("A", 2), product("B", 1)).events[0], StockReserved)
    decision = when(CREATED, None, product("A", 3, reserved=2), product("B", 1))
    assert decision.events == (
        StockRejected(order_id="o", reason="insufficient_stock", shortages=(Shortage("A", 2, 1),)),
    )


@pytest.mark.parametrize(
    ("products", "reason", "shortages"),
    [
        ((product("A", 1), product("B", 0)), "insufficient_stock", (Shortage("A", 2, 1), Shortage("B", 1, 0))),
        ((product("A"), None), "unknown_product", (Shortage("B", 1, 0),)),
        ((product("A"), product("B", currency="USD")), "mixed_currency", ()),
    ],
)
def test_all_lines_or_none(products: tuple[Any, ...], reason: str, shortages: tuple[Shortage, ...]) -> None:
    """One line that cannot be held is enough, and nothing is touched."""
    decision = when(CREATED, None, *products)
    assert decision.states == (Reservation(order_id="o", status=ReservationStatus.REJECTED),)
    assert decision.events == (StockRejected(order_id="o", reason=reason, shortages=shortages),)


def test_confirmed_goods_leave() -> None:
    """From on_hand and from reserved alike, and without a word."""
    decision = when(CONFIRMED, HELD, product("A", reserved=2), product("B", reserved=1))
    assert decision.states == (evolve(HELD, status=ReservationStatus.SHIPPED), product("A", 8), product("B", 9))
    assert decision.events == ()


def test_what_was_held_is_released() -> None:
    """On hand it was all along."""
    decision = when(CANCELLED, HELD, product("A", reserved=2), product("B", reserved=1))
    assert decision.states == (evolve(HELD, status=ReservationStatus.RELEASED), product("A"), product("B"))
    assert decision.events == (StockReleased(order_id="o", lines=ITEMS),)


def test_what_had_left_comes_back() -> None:
    """A cancellation after confirmed puts it on the shelf again."""
    shipped = evolve(HELD, status=ReservationStatus.SHIPPED)
    decision = when(CANCELLED, shipped, product("A", 8), product("B", 9))
    assert decision.states == (evolve(HELD, status=ReservationStatus.RELEASED), product("A"), product("B"))
    assert decision.events == (StockReleased(order_id="o", lines=ITEMS),)


def test_cancelled_before_it_was_met_an_order_gets_nothing_any_more() -> None:
    """A tombstone, and no word of a release: nothing was held."""
    decision = when(CANCELLED, None, product("A"), product("B"))
    tombstone = Reservation(order_id="o", status=ReservationStatus.RELEASED)
    assert decision == Decision((tombstone,))
    assert when(CREATED, tombstone, product("A"), product("B")) == Decision()


@pytest.mark.parametrize(
    ("status", "event"),
    [
        (ReservationStatus.HELD, CREATED),
        (ReservationStatus.SHIPPED, CREATED),
        (ReservationStatus.SHIPPED, CONFIRMED),
        (ReservationStatus.RELEASED, CREATED),
        (ReservationStatus.RELEASED, CONFIRMED),
        (ReservationStatus.RELEASED, CANCELLED),
        (ReservationStatus.REJECTED, CREATED),
        (ReservationStatus.REJECTED, CANCELLED),
    ],
    ids=lambda value: value.value if isinstance(value, ReservationStatus) else type(value).__name__,
)
def test_old_news_moves_nothing(status: ReservationStatus, event: Any) -> None:
    """A confirmation that the cancellation has overtaken least of all."""
    assert when(event, evolve(HELD, status=status), product("A", reserved=2), product("B", reserved=1)) == Decision()


@pytest.mark.parametrize("reservation", [None, evolve(HELD, status=ReservationStatus.REJECTED)])
def test_confirmed_without_stock_is_unexpected(reservation: Reservation | None) -> None:
    """Nobody ships what was never held."""
    with pytest.raises(Unexpected):
        when(CONFIRMED, reservation, product("A"), product("B"))


def test_a_count_sets_and_a_delivery_adds() -> None:
    """What is held stays held; a name that is not given stays, too."""
    counted = ProductSet(product_id="A", on_hand=5, unit_price=Money(9, "EUR"), name=None)
    assert when(counted, None).states == (evolve(product("A", 5, price=9), name=None),)
    assert when(counted, product("A", 10, reserved=5)).states == (product("A", 5, reserved=5, price=9),)
    assert when(Restocked(product_id="A", quantity=3), product("A", 10, reserved=5)).states == (product("A", 13, reserved=5),)


def test_no_count_goes_below_what_is_held() -> None:
    """It is refused, and says how many are held."""
    counted = ProductSet(product_id="A", on_hand=4, unit_price=Money(9, "EUR"), name=None)
    assert when(counted, product("A", 10, reserved=5)) == Decision((), (BelowReserved(product_id="A", reserved=5),))


def test_only_a_known_product_is_restocked() -> None:
    """It would have no price."""
    assert when(Restocked(product_id="A", quantity=3), None) == Decision((), (ProductUnknown(product_id="A"),))
