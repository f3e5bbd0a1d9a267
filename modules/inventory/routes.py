"""The HTTP routes of inventory."""

from __future__ import annotations

__all__ = ["routes", "show"]

from typing import Any

from modules.inventory.events import BelowReserved, PriceRejected, ProductSet, ProductUnknown, Restocked
from modules.inventory.state import Product
from modules.module import DecisionOutcome
from modules.routes import CommandRoute, GetRoute, ListRoute, Rejection, Request, Response, Route
from modules.values import Money


def show(product: Product) -> dict[str, Any]:
    """Return the JSON representation of *product*, as ``Product.json`` describes it."""
    return {
        "product_id": product.product_id,
        "name": product.name,
        "on_hand": product.on_hand,
        "reserved": product.reserved,
        "available": product.available,
        "unit_price": {"amount": product.unit_price_amount, "currency": product.currency},
    }


def _to_product_set(request: Request) -> ProductSet:
    price = request.body["unit_price"]
    return ProductSet(
        product_id=request.path["product_id"],
        on_hand=request.body["on_hand"],
        unit_price=Money(price["amount"], price["currency"]),
        name=request.body.get("name"),
    )


def _to_restocked(request: Request) -> Restocked:
    return Restocked(product_id=request.path["product_id"], quantity=request.body["quantity"])


def _respond(outcome: DecisionOutcome) -> Response | Rejection:
    match outcome.events:
        case (BelowReserved(reserved=reserved),):
            return Rejection(409, "below_reserved", f"{reserved} of it are reserved for orders; on_hand cannot be less.")
        case (PriceRejected(fault=fault),):
            return Rejection(422, "price_not_chargeable", fault.detail, pointer=f"/unit_price/{fault.member}")
        case (ProductUnknown(),):
            return Rejection(404, "product_not_found", "There is no such product.")
    (product,) = outcome.states
    assert product is not None
    return Response(200, show(product))


routes: tuple[Route, ...] = (
    CommandRoute(
        name="setProduct",
        method="PUT",
        path="/v1/inventory/{product_id}",
        summary="Set a product's stock and price",
        request_schema="ProductRequest",
        event=_to_product_set,
        respond=_respond,
        response_schema="Product",
        rejections=(409, 422),
    ),
    CommandRoute(
        name="restockProduct",
        method="POST",
        path="/v1/inventory/{product_id}/restock",
        summary="Add to a product's stock",
        request_schema="RestockRequest",
        event=_to_restocked,
        respond=_respond,
        response_schema="Product",
        idempotent=True,
        rejections=(404,),
    ),
    GetRoute(
        name="getProduct",
        path="/v1/inventory/{product_id}",
        summary="Show a product",
        state=Product,
        show=show,
        response_schema="Product",
    ),
    ListRoute(
        name="listProducts",
        path="/v1/inventory",
        summary="List products by id",
        state=Product,
        show=show,
        response_schema="Product",
    ),
)
