"""Orders: accepts them, and sees each one to confirmed or cancelled."""

from __future__ import annotations

__all__ = ["module"]

from datetime import timedelta
from functools import partial

from bus.contracts.versions import Migration
from modules.inventory.events import StockRejected, StockReleased, StockReserved
from modules.module import Module, load_schemas
from modules.orders.decide import decide, touches
from modules.orders.events import (
    OrderCancelled,
    OrderConfirmed,
    OrderCreated,
    OrderCreatedV1,
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
    PaymentPutAside,
    PaymentRefunded,
)


def module(timeout: timedelta = timedelta(seconds=900)) -> Module:
    """Return the door plate; an order that is not over after *timeout* is cancelled."""
    return Module(
        name="orders",
        hears=(
            StockReserved,
            StockRejected,
            StockReleased,
            PaymentCaptured,
            PaymentDeclined,
            PaymentDelayed,
            PaymentPutAside,
            PaymentRefunded,
            OrderTimedOut,
        ),
        says=(OrderCreated, OrderConfirmed, OrderCancelled, OrderTimedOut),
        said_before=(OrderCreatedV1,),
        migrations=(
            Migration(event="orders.created", frm=1, to=2, down=created_v1, up=created_v2, since="0.2.0"),
        ),
        remembers={Order: order_table},
        touches=touches,
        decide=partial(decide, timeout=timeout),
        schemas=load_schemas(__name__, "schemas"),
        resources=load_schemas(__name__, "schemas/http"),
        routes=routes,
    )
