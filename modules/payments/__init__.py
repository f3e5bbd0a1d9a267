"""Payments: charges each order once, and refunds the charge when the order is cancelled."""

from __future__ import annotations

__all__ = ["module"]

from datetime import timedelta
from functools import partial

from modules.inventory.events import StockReserved
from modules.module import Module, load_schemas
from modules.orders.events import OrderCancelled, OrderRefundRequested
from modules.payments.decide import decide, keys
from modules.payments.events import (
    ChargeRequested,
    PaymentCaptured,
    PaymentDeclined,
    PaymentDelayed,
    PaymentRefunded,
    PaymentRefundFailed,
    PaymentReviewRequired,
    RefundRequested,
)
from modules.payments.routes import routes
from modules.payments.state import Payment, payment_table


def module(timeout: timedelta = timedelta(seconds=900)) -> Module:
    """Return the module descriptor; an order without a final status after *timeout* is cancelled."""
    return Module(
        name="payments",
        consumes=(StockReserved, OrderCancelled, OrderRefundRequested),
        publishes=(
            ChargeRequested,
            RefundRequested,
            PaymentCaptured,
            PaymentDeclined,
            PaymentDelayed,
            PaymentReviewRequired,
            PaymentRefunded,
            PaymentRefundFailed,
        ),
        tables={Payment: payment_table},
        archivable={Payment: Payment.is_finished_since},
        keys=keys,
        decide=partial(decide, timeout=timeout),
        schemas=load_schemas(__name__, "schemas"),
        http_schemas=load_schemas(__name__, "schemas/http"),
        routes=routes,
        workers={"payments-gateway": (ChargeRequested, RefundRequested)},
    )
