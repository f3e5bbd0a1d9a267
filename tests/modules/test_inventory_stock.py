"""Stock is conserved: whatever comes in which order, each piece is on hand, shipped, or accounted for by a client."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from modules.inventory.decide import decide, keys
from modules.inventory.events import (
    AboveMaximum,
    BelowReserved,
    ProductChanged,
    ProductPatched,
    ProductSet,
    ProductUnknown,
    StockAdjusted,
    StockRejected,
)
from modules.inventory.state import ON_HAND_MAX, Product, Reservation, ReservationStatus, etag
from modules.module import Decision
from modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated
from modules.values import UNCONDITIONAL, Line, Money, Precondition
from tests.modules.saga import NOW

PRODUCTS = ("A", "B")
EUR = Money(100, "EUR")


class Stock:
    """The states of inventory, as the runtime keeps them."""

    def __init__(self, on_hand: int) -> None:
        self.states: dict[Any, Any] = {}
        for key in PRODUCTS:
            self.submit(ProductSet(product_id=key, on_hand=on_hand, unit_price=EUR, name=None))

    def submit(self, event: Any) -> Decision:
        decision = decide([self.states.get(key) for key in keys(event)], event, NOW)
        for state in decision.states:
            self.states[type(state), state.product_id if isinstance(state, Product) else state.order_id] = state
        return decision

    def product(self, key: str = "A") -> Product:
        found: Product = self.states[Product, key]
        return found

    def pieces(self, key: str, status: ReservationStatus) -> int:
        """Return how many pieces of a product the reservations with *status* have."""
        found = [state for state in self.states.values() if isinstance(state, Reservation) and state.status is status]
        return sum(line.quantity for reservation in found for line in reservation.lines if line.product_id == key)


quantities = st.integers(1, 6)
order_lines = st.dictionaries(st.sampled_from(PRODUCTS), quantities, min_size=1).map(
    lambda found: tuple(Line(key, quantity) for key, quantity in found.items())
)
tags = st.sampled_from(["read now", "read at first", "*", "of nothing", None])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("order"), st.integers(0, 5), st.permutations(["created", "confirmed", "cancelled"])),
        st.tuples(st.just("adjust"), st.sampled_from(PRODUCTS), st.integers(-8, 8).filter(bool)),
        st.tuples(st.just("patch"), st.sampled_from(PRODUCTS), st.integers(0, 500)),
        st.tuples(st.just("put"), st.sampled_from(PRODUCTS), st.tuples(tags, st.integers(0, 20))),
    ),
    max_size=30,
)


@given(st.integers(0, 20), st.lists(order_lines, min_size=6, max_size=6), steps)
def test_pieces_are_conserved_and_never_oversold(initial: int, lines: list[tuple[Line, ...]], steps: list[Any]) -> None:
    """on hand = initial + counted − shipped, and reserved = held, after any interleaving of orders and commands."""
    stock = Stock(initial)
    counted = dict.fromkeys(PRODUCTS, initial)
    first_tags = {key: etag(stock.product(key)) for key in PRODUCTS}
    sent: dict[int, list[str]] = {}
    for kind, what, how in steps:
        match kind:
            case "order":
                order, remaining = str(what), sent.setdefault(what, list(how))
                if not remaining:
                    continue
                fields = {"order_id": order, "customer_id": "c", "items": lines[what]}
                match remaining.pop():
                    case "created":
                        stock.submit(OrderCreated(**fields, version="v2", shipping_address=None, payment_method=None))
                    case "confirmed":
                        held = stock.states.get((Reservation, order))
                        if held is not None and held.status is not ReservationStatus.REJECTED:  # orders confirms nothing else
                            stock.submit(OrderConfirmed(**fields, total=EUR))
                    case "cancelled":
                        stock.submit(OrderCancelled(**fields, reason="requested"))
            case "adjust":
                if stock.submit(StockAdjusted(product_id=what, quantity=how)).states:
                    counted[what] += how
            case "patch":
                before = stock.product(what)
                stock.submit(ProductPatched(product_id=what, unit_price=Money(how, "EUR"), name=None))
                assert stock.product(what) == evolve(before, unit_price_amount=how)
            case "put":
                (tag, on_hand), before = how, stock.product(what)
                known = {"read now": etag(before), "read at first": first_tags[what], "of nothing": '"0"'}
                precondition = UNCONDITIONAL if tag is None else Precondition(if_match=(known.get(tag, tag),))
                event = ProductSet(product_id=what, on_hand=on_hand, unit_price=EUR, name=None, precondition=precondition)
                if stock.submit(event).states:
                    assert tag != "of nothing"
                    assert tag != "read at first" or etag(before) == first_tags[what]
                    counted[what] += on_hand - before.on_hand
        for key in PRODUCTS:
            product = stock.product(key)
            assert product.on_hand + stock.pieces(key, ReservationStatus.SHIPPED) == counted[key]
            assert product.reserved == stock.pieces(key, ReservationStatus.HELD)
            assert 0 <= product.reserved <= product.on_hand


def order(stock: Stock, id: str, quantity: int) -> None:
    fields: dict[str, Any] = {"order_id": id, "customer_id": "c", "items": (Line("A", quantity),)}
    decision = stock.submit(OrderCreated(**fields, version="v2", shipping_address=None, payment_method=None))
    if not isinstance(decision.events[0], StockRejected):
        stock.submit(OrderConfirmed(**fields, total=EUR))


@pytest.mark.parametrize("how", ["if-match", "patch"])
def test_a_new_price_never_brings_back_pieces_that_were_sold(how: str) -> None:
    """100 are read, ten orders take 30, then the price is set with what was read: no more than 100 are ever sold."""
    stock = Stock(100)
    read = stock.product()
    for number in range(10):
        order(stock, f"early-{number}", 3)
    if how == "if-match":
        event: Any = ProductSet(
            product_id="A", on_hand=read.on_hand, unit_price=EUR, name=None, precondition=Precondition((etag(read),))
        )
        assert stock.submit(event).events == (ProductChanged(product_id="A"),)
    else:
        stock.submit(ProductPatched(product_id="A", unit_price=Money(120, "EUR"), name="new"))
        assert (stock.product().unit_price_amount, stock.product().name) == (120, "new")
    for number in range(50):
        order(stock, f"late-{number}", 3)
    assert stock.pieces("A", ReservationStatus.SHIPPED) == 99
    assert stock.product().on_hand == 1


@pytest.mark.parametrize(
    ("event", "reply"),
    [
        (StockAdjusted(product_id="A", quantity=-8), BelowReserved(product_id="A", reserved=3)),
        (StockAdjusted(product_id="A", quantity=ON_HAND_MAX), AboveMaximum(product_id="A")),
        (StockAdjusted(product_id="?", quantity=1), ProductUnknown(product_id="?")),
        (ProductPatched(product_id="?", unit_price=EUR, name=None), ProductUnknown(product_id="?")),
        (StockAdjusted(product_id="A", quantity=1, precondition=Precondition(('"0"',))), ProductChanged(product_id="A")),
        (
            ProductSet(product_id="A", on_hand=9, unit_price=EUR, name=None, precondition=Precondition(None, ("*",))),
            ProductChanged(product_id="A"),
        ),
        (
            ProductSet(product_id="?", on_hand=9, unit_price=EUR, name=None, precondition=Precondition(("*",))),
            ProductChanged(product_id="?"),
        ),
    ],
)
def test_a_change_that_is_not_possible_changes_nothing(event: Any, reply: Any) -> None:
    """The reply has the reason: ten on hand, three of them reserved."""
    product = Product(product_id="A", name=None, on_hand=10, reserved=3, unit_price_amount=100, currency="EUR")
    decision = decide([product if event.product_id == "A" else None], event, NOW)
    assert (decision.states, decision.events) == ((), (reply,))


products = st.builds(
    Product,
    product_id=st.sampled_from(["A", "B"]),
    name=st.sampled_from([None, "", "None", "A", "', 1, 0"]),
    on_hand=st.integers(0, 12),
    reserved=st.integers(0, 2),
    unit_price_amount=st.integers(0, 12),
    currency=st.sampled_from(["EUR", "USD"]),
)


@given(products, products)
def test_equal_tags_are_those_of_equal_products(one: Product, other: Product) -> None:
    """The tag changes with every change of the representation."""
    assert (etag(one) == etag(other)) == (one == other)


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "holds_for"),
    [
        (None, None, {'"a"', '"b"', None}),
        (("*",), None, {'"a"', '"b"'}),
        (('"a"',), None, {'"a"'}),
        (('"x"', '"a"'), None, {'"a"'}),
        (('W/"a"',), None, set()),
        (None, ("*",), {None}),
        (None, ('"a"',), {'"b"', None}),
        (None, ('W/"a"',), {'"b"', None}),
        (('"a"',), ('"a"',), set()),
        (('"a"',), ('"b"',), {'"a"'}),
    ],
)
def test_a_precondition_holds_as_the_standard_says(
    if_match: tuple[str, ...] | None, if_none_match: tuple[str, ...] | None, holds_for: set[str | None]
) -> None:
    """RFC 9110, section 13.1: If-Match compares strongly, If-None-Match weakly."""
    precondition = Precondition(if_match, if_none_match)
    assert {tag for tag in ('"a"', '"b"', None) if precondition.holds(tag)} == holds_for


@pytest.mark.parametrize(
    ("event", "changes"),
    [
        (ProductPatched(product_id="A", unit_price=None, name="new"), {"name": "new"}),
        (ProductPatched(product_id="A", unit_price=Money(120, "USD"), name=None), {"unit_price_amount": 120, "currency": "USD"}),
        (StockAdjusted(product_id="A", quantity=ON_HAND_MAX - 10), {"on_hand": ON_HAND_MAX}),
        (StockAdjusted(product_id="A", quantity=-7), {"on_hand": 3}),
    ],
)
def test_a_change_leaves_the_rest_of_the_product_as_it_is(event: Any, changes: dict[str, Any]) -> None:
    """Up to the maximum, and down to what is reserved."""
    product = Product(product_id="A", name="old", on_hand=10, reserved=3, unit_price_amount=100, currency="EUR")
    assert decide([product], event, NOW).states == (evolve(product, **changes),)
