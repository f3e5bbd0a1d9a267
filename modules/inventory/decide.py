"""
The state machine of a reservation, and what it does to the stock.

    (no row) --created--> HELD --confirmed--> SHIPPED
       |          \\--> REJECTED |               |
       \\---cancelled---> RELEASED <---cancelled--/

An order gets all its lines or none. The events of an order arrive in any order: confirmed and cancelled may overtake
each other, and cancelled may overtake created. A row with status RELEASED and without lines records an order that was
cancelled first, and for which nothing may be reserved any more.
"""

from __future__ import annotations

__all__ = ["decide", "keys"]

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from bus.subjects import Event
from modules.inventory.events import (
    AboveMaximum,
    BelowReserved,
    PricedLine,
    PriceRejected,
    ProductChanged,
    ProductPatched,
    ProductSet,
    ProductUnknown,
    Shortage,
    StockAdjusted,
    StockRejected,
    StockReleased,
    StockReserved,
)
from modules.inventory.state import ON_HAND_MAX, Product, Reservation, ReservationStatus, etag
from modules.module import Decision, Key, Unexpected, evolve, no_change
from modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated
from modules.values import Line, Money, price_fault


def keys(event: Event) -> tuple[Key, ...]:
    """Return the key of the one product, or those of the order's reservation and of each of its products."""
    match event:
        case ProductSet() | ProductPatched() | StockAdjusted():
            return ((Product, event.product_id),)
    return ((Reservation, event.order_id), *((Product, line.product_id) for line in event.items))


def decide(states: Sequence[Any], event: Event, now: datetime) -> Decision:
    """
    Return what follows from *event* for the reservation and the products.

    Raises:
        Unexpected: The state machine has no transition for *event* in this state.
    """
    match event:
        case ProductSet() | ProductPatched() | StockAdjusted():
            return _product_changed(states[0], event)
    reservation: Reservation | None = states[0]
    products: Sequence[Product | None] = states[1:]
    match reservation and reservation.status, event:
        case None, OrderCreated():
            return _reserve(event, products)
        case None, OrderCancelled():
            return Decision((Reservation(order_id=event.order_id, status=ReservationStatus.RELEASED),))
        case ReservationStatus.HELD, OrderConfirmed():
            return _move_stock(reservation, products, ReservationStatus.SHIPPED, on_hand=-1, reserved=-1)
        case ReservationStatus.HELD, OrderCancelled():
            return _move_stock(reservation, products, ReservationStatus.RELEASED, reserved=-1)
        case ReservationStatus.SHIPPED, OrderCancelled():
            return _move_stock(reservation, products, ReservationStatus.RELEASED, on_hand=1)
        case ReservationStatus.RELEASED, _:
            return no_change()
        case ReservationStatus.REJECTED, (OrderCreated() | OrderCancelled()):
            return no_change()
        case ((ReservationStatus.HELD | ReservationStatus.SHIPPED), OrderCreated()):
            return no_change()
        case ReservationStatus.SHIPPED, OrderConfirmed():
            return no_change()
    raise Unexpected(f"{type(event).__name__} while {reservation.status.value if reservation else 'there is no reservation'}")


def _product_changed(product: Product | None, event: ProductSet | ProductPatched | StockAdjusted) -> Decision:
    product_id = event.product_id
    if not event.precondition.holds(None if product is None else etag(product)):
        return no_change(ProductChanged(product_id=product_id))
    price = None if isinstance(event, StockAdjusted) else event.unit_price
    if price is not None and (fault := price_fault(price)) is not None:
        return no_change(PriceRejected(product_id=product_id, fault=fault))
    match product, event:
        case None, ProductSet():
            assert price is not None
            return Decision(
                (
                    Product(
                        product_id=product_id,
                        name=event.name,
                        on_hand=event.on_hand,
                        reserved=0,
                        unit_price_amount=price.amount,
                        currency=price.currency,
                    ),
                )
            )
        case None, _:
            return no_change(ProductUnknown(product_id=product_id))
        case Product(), StockAdjusted():
            return _counted(product, product.on_hand + event.quantity)
        case Product(), ProductSet():
            return _counted(_described(product, event), event.on_hand)
    assert product is not None
    assert isinstance(event, ProductPatched)
    return Decision((_described(product, event),))


def _described(product: Product, event: ProductSet | ProductPatched) -> Product:
    """Return *product* with the price and the name of *event*, where it has them."""
    price = event.unit_price or Money(product.unit_price_amount, product.currency)
    name = product.name if event.name is None else event.name
    return evolve(product, unit_price_amount=price.amount, currency=price.currency, name=name)


def _counted(product: Product, on_hand: int) -> Decision:
    """Return *product* with *on_hand* pieces, or why it cannot have as many."""
    if on_hand < product.reserved:
        return no_change(BelowReserved(product_id=product.product_id, reserved=product.reserved))
    if on_hand > ON_HAND_MAX:
        return no_change(AboveMaximum(product_id=product.product_id))
    return Decision((evolve(product, on_hand=on_hand),))


def _reserve(event: OrderCreated, products: Sequence[Product | None]) -> Decision:
    pairs = list(zip(event.items, products, strict=True))
    if unknown := [Shortage(line.product_id, line.quantity, 0) for line, product in pairs if product is None]:
        return _rejected(event, "unknown_product", unknown)
    known = [(line, product) for line, product in pairs if product is not None]
    if len({product.currency for _, product in known}) > 1:
        return _rejected(event, "mixed_currency", [])
    if short := [
        Shortage(line.product_id, line.quantity, product.available)
        for line, product in known
        if product.available < line.quantity
    ]:
        return _rejected(event, "insufficient_stock", short)

    currency = known[0][1].currency
    held = [evolve(product, reserved=product.reserved + line.quantity) for line, product in known]
    lines = [
        PricedLine(line.product_id, line.quantity, Money(product.unit_price_amount, currency)) for line, product in known
    ]
    reserved = StockReserved(
        order_id=event.order_id,
        lines=tuple(lines),
        total=Money(sum([line.quantity * line.unit_price.amount for line in lines]), currency),
        payment_method=event.payment_method,
        payment_customer=event.payment_customer,
        shipping_address=event.shipping_address,
    )
    reservation = Reservation(order_id=event.order_id, status=ReservationStatus.HELD, lines=event.items)
    return Decision((reservation, *held), (reserved,))


def _rejected(event: OrderCreated, reason: str, shortages: list[Shortage]) -> Decision:
    reservation = Reservation(order_id=event.order_id, status=ReservationStatus.REJECTED)
    rejected = StockRejected(order_id=event.order_id, reason=reason, shortages=tuple(shortages))
    return Decision((reservation,), (rejected,))


def _move_stock(
    reservation: Reservation | None,
    products: Sequence[Product | None],
    status: ReservationStatus,
    *,
    on_hand: int = 0,
    reserved: int = 0,
) -> Decision:
    """
    Set the reservation to *status*, and change each product's stock by *on_hand* and *reserved* times the quantity.

    The quantities are those of the reservation, not of the event.

    Raises:
        Unexpected: The event lacks a product that is reserved, so its state was not loaded.
    """
    assert reservation is not None
    by_id = {product.product_id: product for product in products if product is not None}
    moved = []
    for line in reservation.lines:
        product = by_id.get(line.product_id)
        if product is None:
            raise Unexpected(f"the event lacks {line.product_id}, which is reserved for the order")
        moved.append(
            evolve(
                product,
                on_hand=product.on_hand + on_hand * line.quantity,
                reserved=product.reserved + reserved * line.quantity,
            )
        )
    lines = tuple(Line(line.product_id, line.quantity) for line in reservation.lines)
    emitted = (StockReleased(order_id=reservation.order_id, lines=lines),) if status is ReservationStatus.RELEASED else ()
    return Decision((evolve(reservation, status=status), *moved), emitted)
