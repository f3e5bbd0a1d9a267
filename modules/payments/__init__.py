"""Payments: charges each order once, and refunds the charge when the order is cancelled."""

from __future__ import annotations

__all__ = ["module"]

from modules.inventory.events import StockReserved
from modules.module import Module, load_schemas
from modules.orders.events import OrderCancelled
from modules.payments.decide import decide, keys
from modules.payments.events import (
    ChargeRequested,
    PaymentCaptured,
    PaymentDeclined,
    PaymentDelayed,
    PaymentRefunded,
    PaymentReviewRequired,
    RefundRequested,
)
from modules.payments.routes import routes
from modules.payments.state import Payment, payment_table


def module() -> Module:
    """Return the module descriptor."""
    return Module(
        name="payments",
        consumes=(StockReserved, OrderCancelled),
        publishes=(
            ChargeRequested,
            RefundRequested,
            PaymentCaptured,
            PaymentDeclined,
            PaymentDelayed,
            PaymentReviewRequired,
            PaymentRefunded,
        ),
        tables={Payment: payment_table},
        keys=keys,
        decide=decide,
        schemas=load_schemas(__name__, "schemas"),
        http_schemas=load_schemas(__name__, "schemas/http"),
        routes=routes,
        workers={"payments-gateway": (ChargeRequested, RefundRequested)},
    )
