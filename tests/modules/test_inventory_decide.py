"""The state machine of a reservation: given this state, when this event arrives, then expect this decision."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from modules.inventory.decide import decide, keys
from modules.inventory.events import (
    BelowReserved,
    PricedLine,
    PriceRejected,
    ProductSet,
    ProductUnknown,
    Shortage,
    StockAdjusted,
    StockRejected,
    StockReleased,
    StockReserved,
)
from modules.inventory.state import Product, Reservation, ReservationStatus
from modules.module import Decision, Unexpected
from modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated
from modules.values import Address, Line, Money, PriceFault
from tests.modules.saga import NOW

ITEMS = (Line("A", 2), Line("B", 1))
ADDRESS = Address("1 Main St", "Berlin", "10115", "DE")
CREATED = OrderCreated(
    order_id="o", customer_id="c", items=ITEMS, version="v2", shipping_address=ADDRESS, payment_method="pm", payment_customer="cus"
)
CONFIRMED = OrderConfirmed(order_id="o", customer_id="c", items=ITEMS, total=Money(700, "EUR"))
CANCELLED = OrderCancelled(order_id="o", customer_id="c", items=ITEMS, reason="requested")
HELD = Reservation(order_id="o", status=ReservationStatus.HELD, lines=ITEMS)


def product(key: str, on_hand: int = 10, reserved: int = 0, price: int = 100, currency: str = "EUR") -> Product:
    return Product(
        product_id=key, name=key, on_hand=on_hand, reserved=reserved, unit_price_amount=price, currency=currency
    )


def when(event: Any, *states: Any) -> Decision:
    return decide(states, event, NOW)


def test_an_order_loads_its_reservation_and_each_of_its_products() -> None:
    """A stock change loads its product."""
    assert keys(CREATED) == ((Reservation, "o"), (Product, "A"), (Product, "B"))
    assert keys(StockAdjusted(product_id="A", quantity=1)) == ((Product, "A"),)


def test_all_lines_are_reserved_at_their_prices() -> None:
    """Reserved stock stays on hand; the total is the sum of the lines."""
    decision = when(CREATED, None, product("A", price=100), product("B", price=500))
    assert decision.states == (HELD, product("A", reserved=2, price=100), product("B", reserved=1, price=500))
    assert decision.events == (
        StockReserved(
            order_id="o",
            lines=(PricedLine("A", 2, Money(100, "EUR")), PricedLine("B", 1, Money(500, "EUR"))),
            total=Money(700, "EUR"),
            payment_method="pm",
            payment_customer="cus",
            shipping_address=ADDRESS,
        ),
    )


def test_the_last_piece_is_reserved_and_the_next_order_is_rejected() -> None:
    """Reserved stock is not available to other orders."""
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
def test_an_order_reserves_all_its_lines_or_none(products: tuple[Any, ...], reason: str, shortages: tuple[Shortage, ...]) -> None:
    """One line that cannot be reserved is enough, and no product changes."""
    decision = when(CREATED, None, *products)
    assert decision.states == (Reservation(order_id="o", status=ReservationStatus.REJECTED),)
    assert decision.events == (StockRejected(order_id="o", reason=reason, shortages=shortages),)


def test_a_confirmation_ships_the_reserved_stock() -> None:
    """Both on_hand and reserved decrease; nothing is published."""
    decision = when(CONFIRMED, HELD, product("A", reserved=2), product("B", reserved=1))
    assert decision.states == (evolve(HELD, status=ReservationStatus.SHIPPED), product("A", 8), product("B", 9))
    assert decision.events == ()


def test_a_cancellation_releases_the_reserved_stock() -> None:
    """It was on hand all the time."""
    decision = when(CANCELLED, HELD, product("A", reserved=2), product("B", reserved=1))
    assert decision.states == (evolve(HELD, status=ReservationStatus.RELEASED), product("A"), product("B"))
    assert decision.events == (StockReleased(order_id="o", lines=ITEMS),)


def test_a_cancellation_takes_shipped_stock_back() -> None:
    """A cancellation after the confirmation increases on_hand again."""
    shipped = evolve(HELD, status=ReservationStatus.SHIPPED)
    decision = when(CANCELLED, shipped, product("A", 8), product("B", 9))
    assert decision.states == (evolve(HELD, status=ReservationStatus.RELEASED), product("A"), product("B"))
    assert decision.events == (StockReleased(order_id="o", lines=ITEMS),)


def test_a_cancellation_before_the_order_prevents_a_reservation() -> None:
    """The row remains; no release is published, because nothing was reserved."""
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
def test_a_stale_event_does_not_change_the_stock(status: ReservationStatus, event: Any) -> None:
    """In particular a confirmation that the cancellation has overtaken."""
    assert when(event, evolve(HELD, status=status), product("A", reserved=2), product("B", reserved=1)) == Decision()


@pytest.mark.parametrize("reservation", [None, evolve(HELD, status=ReservationStatus.REJECTED)])
def test_a_confirmation_without_reserved_stock_is_unexpected(reservation: Reservation | None) -> None:
    """Stock that was never reserved cannot be shipped."""
    with pytest.raises(Unexpected):
        when(CONFIRMED, reservation, product("A"), product("B"))


def test_setting_replaces_the_stock_and_restocking_adds_to_it() -> None:
    """The reserved quantity stays; a name that is omitted stays, too."""
    stock_set = ProductSet(product_id="A", on_hand=5, unit_price=Money(9, "EUR"), name=None)
    assert when(stock_set, None).states == (evolve(product("A", 5, price=9), name=None),)
    assert when(stock_set, product("A", 10, reserved=5)).states == (product("A", 5, reserved=5, price=9),)
    assert when(StockAdjusted(product_id="A", quantity=3), product("A", 10, reserved=5)).states == (product("A", 13, reserved=5),)


def test_the_stock_cannot_be_set_below_the_reserved_quantity() -> None:
    """The reply has the reserved quantity."""
    stock_set = ProductSet(product_id="A", on_hand=4, unit_price=Money(9, "EUR"), name=None)
    assert when(stock_set, product("A", 10, reserved=5)) == Decision((), (BelowReserved(product_id="A", reserved=5),))


def test_an_unknown_product_cannot_be_restocked() -> None:
    """It would have no price."""
    assert when(StockAdjusted(product_id="A", quantity=3), None) == Decision((), (ProductUnknown(product_id="A"),))


@pytest.mark.parametrize(
    ("price", "member"), [(Money(100, "X" * 3), "currency"), (Money(1005, "KWD"), "amount"), (Money(150, "MGA"), "amount")]
)
def test_a_price_that_cannot_be_charged_is_refused(price: Money, member: str) -> None:
    """The product stays as it is, and the reply names the member of the price."""
    command = ProductSet(product_id="A", on_hand=1, unit_price=price, name=None)
    for state in None, product("A"):
        decision = when(command, state)
        assert decision.states == ()
        (rejected,) = decision.events
        assert isinstance(rejected, PriceRejected)
        assert rejected.product_id == "A"
        assert isinstance(rejected.fault, PriceFault)
        assert rejected.fault.member == member
