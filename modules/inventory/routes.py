"""The HTTP routes of inventory."""

from __future__ import annotations

__all__ = ["routes", "show"]

from typing import Any

from attrs import evolve

from modules.filters import Filter, Match
from modules.inventory.events import (
    AboveMaximum,
    BelowReserved,
    PriceRejected,
    ProductChanged,
    ProductPatched,
    ProductSet,
    ProductUnknown,
    StockAdjusted,
)
from modules.inventory.state import ON_HAND_MAX, Product, etag
from modules.module import DecisionOutcome
from modules.routes import CommandRoute, GetRoute, ImportRoute, ListRoute, Rejection, Request, Response, Route
from modules.values import UNCONDITIONAL, Money, Precondition


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
    return ProductSet(
        product_id=request.path["product_id"],
        on_hand=request.body["on_hand"],
        unit_price=Money(**request.body["unit_price"]),
        name=request.body.get("name"),
        precondition=request.precondition,
    )


def _to_product_patched(request: Request) -> ProductPatched:
    price = request.body.get("unit_price")
    return ProductPatched(
        product_id=request.path["product_id"],
        unit_price=None if price is None else Money(**price),
        name=request.body.get("name"),
        precondition=request.precondition,
    )


def _to_stock_adjusted(request: Request) -> StockAdjusted:
    return StockAdjusted(
        product_id=request.path["product_id"], quantity=request.body["quantity"], precondition=request.precondition
    )


def _line_to_event(request: Request) -> ProductSet | ProductPatched:
    """Return the event for a line of an import: with ``on_hand`` the product is set, without it patched."""
    line = request.body
    tag = line.get("etag")
    precondition = UNCONDITIONAL if tag is None else Precondition(if_match=(tag,))
    of_line = evolve(request, path={"product_id": line["product_id"]}, precondition=precondition)
    return _to_product_set(of_line) if "on_hand" in line else _to_product_patched(of_line)


def _respond(outcome: DecisionOutcome) -> Response | Rejection:
    match outcome.events:
        case (BelowReserved(reserved=reserved),):
            return Rejection(409, "below_reserved", f"{reserved} of it are reserved for orders; on_hand cannot be less.")
        case (PriceRejected(fault=fault),):
            return Rejection(422, "price_not_chargeable", fault.detail, pointer=f"/unit_price/{fault.member}")
        case (ProductUnknown(),):
            return Rejection(404, "product_not_found", "There is no such product.")
        case (AboveMaximum(),):
            return Rejection(409, "above_maximum", f"on_hand cannot be more than {ON_HAND_MAX}.")
        case (ProductChanged(),):
            return Rejection(
                412, "precondition_failed", "The product does not match If-Match or If-None-Match; read it again."
            )
    (product,) = outcome.states
    assert product is not None
    return Response(200, show(product), {"ETag": etag(product)})


def _command(name: str, method: str, path: str, summary: str, request_schema: str, **options: Any) -> CommandRoute:
    """Return a route that changes one product."""
    return CommandRoute(
        name=name,
        method=method,
        path=path,
        summary=summary,
        request_schema=request_schema,
        respond=_respond,
        response_schema="Product",
        roles=("stock",),
        takes_precondition=True,
        **options,
    )


def _import(name: str, method: str, path: str) -> ImportRoute:
    """Return a route that changes many products."""
    return ImportRoute(
        name=name,
        method=method,
        path=path,
        summary="Set or change many products, one a line",
        roles=("stock",),
        event=_line_to_event,
        respond=_respond,
        line_schema="ProductLine",
        response_schema="Product",
    )


routes: tuple[Route, ...] = (
    _command(
        *("setProduct", "PUT", "/v1/inventory/{product_id}", "Set a product's stock and price", "ProductRequest"),
        event=_to_product_set,
        rejections=(409, 412, 422),
    ),
    _command(
        *("changeProduct", "PATCH", "/v1/inventory/{product_id}", "Change a product's price or name", "ProductPatch"),
        event=_to_product_patched,
        rejections=(404, 412, 422),
    ),
    _command(
        *("restockProduct", "POST", "/v1/inventory/{product_id}/restock", "Add to a product's stock", "RestockRequest"),
        event=_to_stock_adjusted,
        idempotent=True,
        rejections=(404, 409, 412),
    ),
    _command(
        "adjustProduct",
        "POST",
        "/v1/inventory/{product_id}/adjust",
        "Add to a product's stock or take from it, for a reason",
        "AdjustRequest",
        event=_to_stock_adjusted,
        idempotent=True,
        rejections=(404, 409, 412),
    ),
    _import("importProducts", "POST", "/v1/inventory/import"),
    _import("setProducts", "PUT", "/v1/inventory"),
    GetRoute(
        name="getProduct",
        path="/v1/inventory/{product_id}",
        summary="Show a product",
        roles=("stock", "viewer"),
        state=Product,
        show=show,
        response_schema="Product",
        etag=etag,
    ),
    ListRoute(
        name="listProducts",
        path="/v1/inventory",
        summary="List products by id",
        roles=("stock", "viewer"),
        state=Product,
        show=show,
        response_schema="Product",
        filters=(
            Filter(
                *("q", {"type": "string", "minLength": 1, "maxLength": 64}, "Products whose id begins with it."),
                Match.BEGINS_WITH,
                columns=("product_id",),
            ),
            Filter(
                *("max_available", {"type": "integer", "minimum": 0, "maximum": ON_HAND_MAX}),
                "Products of which at most this many are available.",
                Match.REMAINDER_AT_MOST,
                columns=("on_hand", "reserved"),
            ),
        ),
    ),
)
