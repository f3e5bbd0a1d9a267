"""Inventory: holds stock for orders, all lines or none, and lets it go."""

from __future__ import annotations

__all__ = ["module"]

from modules.inventory.decide import decide, touches
from modules.inventory.events import StockRejected, StockReleased, StockReserved
from modules.inventory.routes import routes
from modules.inventory.state import Product, Reservation, product_table, reservation_table
from modules.module import Module, load_schemas
from modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated


def module() -> Module:
    """Return the door plate."""
    return Module(
        name="inventory",
        hears=(OrderCreated, OrderConfirmed, OrderCancelled),
        says=(StockReserved, StockRejected, StockReleased),
        remembers={Reservation: reservation_table, Product: product_table},
        touches=touches,
        decide=decide,
        schemas=load_schemas(__name__, "schemas"),
        resources=load_schemas(__name__, "schemas/http"),
        routes=routes,
    )
