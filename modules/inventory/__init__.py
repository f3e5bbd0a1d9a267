"""Inventory: reserves stock for orders, all lines or none, and releases it again."""

from __future__ import annotations

__all__ = ["module"]

from attrs import evolve

from modules.inventory.decide import decide, keys
from modules.inventory.events import StockRejected, StockReleased, StockReserved
from modules.inventory.routes import routes
from modules.inventory.state import Product, Reservation, product_table, reservation_table
from modules.module import Module, load_schemas
from modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated
from modules.routes import CommandRoute


def module(*, requires_precondition: bool = False) -> Module:
    """Return the module descriptor; with *requires_precondition* a product is set only with If-Match or If-None-Match."""
    return Module(
        name="inventory",
        consumes=(OrderCreated, OrderConfirmed, OrderCancelled),
        publishes=(StockReserved, StockRejected, StockReleased),
        tables={Reservation: reservation_table, Product: product_table},
        archivable={Reservation: Reservation.is_finished_since},
        keys=keys,
        decide=decide,
        schemas=load_schemas(__name__, "schemas"),
        http_schemas=load_schemas(__name__, "schemas/http"),
        routes=tuple(
            evolve(route, requires_precondition=True)
            if requires_precondition and isinstance(route, CommandRoute) and route.method == "PUT"
            else route
            for route in routes
        ),
    )
