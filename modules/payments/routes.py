"""The HTTP routes of payments."""

from __future__ import annotations

__all__ = ["routes", "show"]

from typing import Any

from modules.payments.state import Payment
from modules.routes import GetRoute, Route
from modules.values import rfc3339


def show(payment: Payment) -> dict[str, Any] | None:
    """Return the JSON representation of *payment*, or None if no charge was ever requested."""
    if payment.amount is None:
        return None
    shown = {
        "order_id": payment.order_id,
        "status": payment.status.value,
        "amount": {"amount": payment.amount, "currency": payment.currency},
        "attempts": payment.calls,
        "reference": payment.reference,
        "updated_at": rfc3339(payment.updated_at),
    }
    if payment.reason is not None:
        shown["reason"] = payment.reason
    return shown


routes: tuple[Route, ...] = (
    GetRoute(
        name="getPayment",
        path="/v1/payments/{order_id}",
        summary="Show an order's payment",
        state=Payment,
        show=show,
        response_schema="Payment",
    ),
)
