"""The HTTP routes of orders."""

from __future__ import annotations

__all__ = ["filters", "routes", "show"]

from typing import Any

from attrs import asdict

from modules.filters import Filter, Match, created_between
from modules.module import DecisionOutcome
from modules.orders.events import CancelRequested, OrderSubmitted, OrderUnknown, RefundImpossible, RefundSubmitted
from modules.orders.state import Order, Status
from modules.routes import (
    CommandRoute,
    ExportRoute,
    GetRoute,
    ListRoute,
    ListStreamRoute,
    Rejection,
    Request,
    Response,
    Route,
    StreamRoute,
)
from modules.values import Address, Line, Money, rfc3339


def show(order: Order) -> dict[str, Any]:
    """Return the JSON representation of *order*, as ``Order.json`` describes it."""
    shown = {
        "order_id": order.order_id,
        "customer_id": order.customer_id,
        "status": order.status.value,
        "reason": order.reason,
        "items": [{"product_id": line.product_id, "quantity": line.quantity} for line in order.items],
        "total": None if order.total_amount is None else {"amount": order.total_amount, "currency": order.currency},
        "priority": "express" if order.is_express else "normal",
        "created_at": rfc3339(order.created_at),
        "updated_at": rfc3339(order.updated_at),
        "timeline": list(order.timeline),
    }
    if order.correlation_id is not None:
        shown["correlation_id"] = order.correlation_id
    if order.waiting_for is not None:
        shown["waiting_for"] = order.waiting_for
    if order.refunds:
        shown["refunded"] = {"amount": order.refunded, "currency": order.currency}
        shown["refunds"] = [_show_refund(entry, order.currency) for entry in order.refunds]
    if order.shipping_address is not None:
        shown["shipping_address"] = _show_address(order.shipping_address)
    return shown


def _show_refund(entry: dict[str, Any], currency: str | None) -> dict[str, Any]:
    return {**entry, "amount": {"amount": entry["amount"], "currency": currency}}


def _show_address(address: Address) -> dict[str, Any]:
    return {name: value for name, value in asdict(address).items() if value is not None}


def _to_submitted(request: Request) -> OrderSubmitted:
    body = request.body
    return OrderSubmitted(
        order_id=request.new_id,
        customer_id=body["customer_id"],
        items=tuple(Line(line["product_id"], line["quantity"]) for line in body["items"]),
        is_express=body.get("priority") == "express",
        payment_method=body.get("payment_method"),
        payment_customer=body.get("payment_customer"),
        shipping_address=Address(**body["shipping_address"]) if "shipping_address" in body else None,
        correlation_id=request.correlation_id or None,
    )


def _respond_accepted(outcome: DecisionOutcome) -> Response:
    (order,) = outcome.states
    assert order is not None
    return Response(
        202,
        {"order_id": order.order_id, "status": order.status.value},
        {"Location": f"/v1/orders/{order.order_id}"},
    )


def _to_cancel_requested(request: Request) -> CancelRequested:
    return CancelRequested(order_id=request.path["order_id"], why=(request.body or {}).get("reason"))


def _to_refund_submitted(request: Request) -> RefundSubmitted:
    body = request.body
    return RefundSubmitted(
        order_id=request.path["order_id"],
        refund_id=request.new_id,
        amount=Money(body["amount"]["amount"], body["amount"]["currency"]) if "amount" in body else None,
        items=tuple(Line(line["product_id"], line["quantity"]) for line in body.get("items", ())),
        why=body["reason"],
    )


def _respond_refund_submitted(outcome: DecisionOutcome) -> Response | Rejection:
    match outcome.events:
        case (RefundImpossible(code=code, detail=detail),):
            return Rejection(409, code, detail)
    return _respond_cancelled(outcome)


def _respond_cancelled(outcome: DecisionOutcome) -> Response | Rejection:
    match outcome.events:
        case (OrderUnknown(),):
            return Rejection(404, "order_not_found", "There is no such order.")
    (order,) = outcome.states
    assert order is not None
    return Response(202, show(order))


_TEXT = {"type": "string", "minLength": 1}
_AMOUNT = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}

REASONS = (
    "insufficient_stock",
    "mixed_currency",
    "payment_declined",
    "payment_unavailable",
    "requested",
    "timed_out",
    "unknown_product",
)
"""Why an order may be cancelled."""

filters = (
    Filter("correlation_id", {**_TEXT, "maxLength": 128}, "Orders that one request placed.", is_indexed=True),
    Filter("customer_id", {**_TEXT, "maxLength": 64}, is_indexed=True),
    Filter("waiting_for", {"type": "string", "enum": ["payment"]}, "Orders that wait for it.", is_indexed=True),
    Filter(
        *("reason", {"type": "string", "enum": list(REASONS)}, "Why the order was cancelled; several by commas."),
        takes_list=True,
        is_indexed=True,
    ),
    Filter(
        *("status", {"type": "string", "enum": [status.value for status in Status]}, "Several values by commas."),
        takes_list=True,
        is_indexed=True,
    ),
    Filter(
        *("product_id", {**_TEXT, "maxLength": 64}, "Orders with a line of this product.", Match.HAS_MEMBER, ("items",)),
        member="product_id",
    ),
    *created_between("Orders placed", "created_at"),
    Filter("min_total", _AMOUNT, "Least total, in minor units of its currency.", Match.AT_LEAST, ("total_amount",)),
    Filter("max_total", _AMOUNT, "Greatest total, in minor units of its currency.", Match.AT_MOST, ("total_amount",)),
    Filter(
        "q",
        {**_TEXT, "maxLength": 128},
        "The first characters of an order id, a customer id or a correlation id.",
        Match.BEGINS_WITH,
        ("order_id", "customer_id", "correlation_id"),
    ),
)
"""Of the list of orders, the most selective first."""

routes: tuple[Route, ...] = (
    CommandRoute(
        name="placeOrder",
        method="POST",
        path="/v1/orders",
        summary="Place an order",
        roles=("shop",),
        request_schema="OrderRequest",
        event=_to_submitted,
        respond=_respond_accepted,
        status=202,
        response_schema="OrderAccepted",
        idempotent=True,
        express=lambda request: request.body.get("priority") == "express",
        sheds_load=True,
        customer="customer_id",
        is_audited=False,  # the order itself is the record; a second row would cost every order
    ),
    GetRoute(
        name="getOrder",
        path="/v1/orders/{order_id}",
        summary="Show an order",
        roles=("shop", "viewer"),
        state=Order,
        show=show,
        response_schema="Order",
    ),
    ListRoute(
        name="listOrders",
        path="/v1/orders",
        summary="List orders, newest first",
        roles=("shop", "viewer"),
        state=Order,
        show=show,
        response_schema="Order",
        newest_first=True,
        filters=filters,
    ),
    ExportRoute(
        name="exportOrders",
        path="/v1/orders/export",
        summary="Export all orders, or those that the filters select, one a line",
        roles=("shop", "viewer"),
        state=Order,
        show=show,
        response_schema="Order",
        newest_first=True,
        filters=filters,
    ),
    ListStreamRoute(
        name="streamOrders",
        path="/v1/orders/stream",
        summary="Follow all orders, or those that the filters select, as server-sent events",
        roles=("shop", "viewer"),
        state=Order,
        show=show,
        event_name="order",
        response_schema="Order",
        filters=filters,
    ),
    CommandRoute(
        name="cancelOrder",
        method="POST",
        path="/v1/orders/{order_id}/cancel",
        summary="Cancel an order, also a confirmed one",
        roles=("shop",),
        request_schema="CancelRequest",
        needs_body=False,
        event=_to_cancel_requested,
        respond=_respond_cancelled,
        status=202,
        response_schema="Order",
        rejections=(404,),
        owned=Order,
    ),
    CommandRoute(
        name="refundOrder",
        method="POST",
        path="/v1/orders/{order_id}/refund",
        summary="Refund an order: an amount, some of its items, or all that is left",
        request_schema="RefundRequest",
        event=_to_refund_submitted,
        respond=_respond_refund_submitted,
        status=202,
        response_schema="Order",
        idempotent=True,
        rejections=(404, 409),
    ),
    StreamRoute(
        name="streamOrder",
        path="/v1/orders/{order_id}/stream",
        summary="Follow an order to its end, as server-sent events",
        roles=("shop", "viewer"),
        state=Order,
        show=show,
        event_name="order",
        is_finished=lambda order: bool(order.is_final),
        response_schema="Order",
    ),
)
