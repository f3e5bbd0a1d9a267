"""Inventory: reserves stock for orders, all lines or none, and releases it again."""

from __future__ import annotations

__all__ = ["module"]

from modules.inventory.decide import decide, keys
from modules.inventory.events import StockRejected, StockReleased, StockReserved
from modules.inventory.routes import routes
from modules.inventory.state import Product, Reservation, product_table, reservation_table
from modules.module import Module, load_schemas
from modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated


def module() -> Module:
    """Return the module descriptor."""
    return Module(
        name="inventory",
        consumes=(OrderCreated, OrderConfirmed, OrderCancelled),
        publishes=(StockReserved, StockRejected, StockReleased),
        tables={Reservation: reservation_table, Product: product_table},
        keys=keys,
        decide=decide,
        schemas=load_schemas(__name__, "schemas"),
        http_schemas=load_schemas(__name__, "schemas/http"),
        routes=routes,
    )
