"""Payments: has the money of an order taken once, and given back when the order is cancelled."""

from __future__ import annotations

__all__ = ["module"]

from modules.inventory.events import StockReserved
from modules.module import Module, load_schemas
from modules.orders.events import OrderCancelled
from modules.payments.decide import decide, touches
from modules.payments.events import (
    ChargeRequested,
    PaymentCaptured,
    PaymentDeclined,
    PaymentDelayed,
    PaymentPutAside,
    PaymentRefunded,
    RefundRequested,
)
from modules.payments.routes import routes
from modules.payments.state import Payment, payment_table


def module() -> Module:
    """Return the door plate."""
    return Module(
        name="payments",
        hears=(StockReserved, OrderCancelled),
        says=(
            ChargeRequested,
            RefundRequested,
            PaymentCaptured,
            PaymentDeclined,
            PaymentDelayed,
            PaymentPutAside,
            PaymentRefunded,
        ),
        remembers={Payment: payment_table},
        touches=touches,
        decide=decide,
        schemas=load_schemas(__name__, "schemas"),
        resources=load_schemas(__name__, "schemas/http"),
        routes=routes,
    )
