"""Orders: accepts orders and takes each one to its final status, confirmed or cancelled."""

from __future__ import annotations

__all__ = ["module"]

from datetime import timedelta
from functools import partial

from bus.contracts.versions import DualPublish
from modules.inventory.events import StockRejected, StockReleased, StockReserved
from modules.module import Module, load_schemas
from modules.orders.decide import decide, keys
from modules.orders.events import (
    OrderCancelled,
    OrderConfirmed,
    OrderCreated,
    OrderCreatedV1,
    OrderRefundRequested,
    OrderTimedOut,
    created_v1,
    created_v2,
)
from modules.orders.routes import routes
from modules.orders.state import Order, order_table
from modules.payments.events import (
    PaymentCaptured,
    PaymentDeclined,
    PaymentDelayed,
    PaymentRefunded,
    PaymentRefundFailed,
    PaymentReviewRequired,
)


def module(timeout: timedelta = timedelta(seconds=900)) -> Module:
    """Return the module descriptor; an order without a final status after *timeout* is cancelled."""
    return Module(
        name="orders",
        consumes=(
            StockReserved,
            StockRejected,
            StockReleased,
            PaymentCaptured,
            PaymentDeclined,
            PaymentDelayed,
            PaymentReviewRequired,
            PaymentRefunded,
            PaymentRefundFailed,
            OrderTimedOut,
        ),
        publishes=(OrderCreated, OrderConfirmed, OrderCancelled, OrderTimedOut, OrderRefundRequested),
        previous_versions=(OrderCreatedV1,),
        dual_publishes=(
            DualPublish(event="orders.created", from_version=1, to_version=2, down=created_v1, up=created_v2, since="0.2.0"),
        ),
        tables={Order: order_table},
        archivable={Order: Order.is_finished_since},
        keys=keys,
        decide=partial(decide, timeout=timeout),
        schemas=load_schemas(__name__, "schemas"),
        http_schemas=load_schemas(__name__, "schemas/http"),
        routes=routes,
    )
