"""What a client may ask of inventory."""

from __future__ import annotations

__all__ = ["routes", "show"]

from typing import Any

from modules.inventory.events import BelowReserved, ProductSet, ProductUnknown, Restocked
from modules.inventory.state import Product
from modules.module import Outcome
from modules.route import Answer, Browse, Refusal, Request, Route, Show, Tell
from modules.values import Money


def show(product: Product) -> dict[str, Any]:
    """Return *product* as the API shows it."""
    return {
        "product_id": product.product_id,
        "name": product.name,
        "on_hand": product.on_hand,
        "reserved": product.reserved,
        "available": product.available,
        "unit_price": {"amount": product.unit_price_amount, "currency": product.currency},
    }


def _set(request: Request) -> ProductSet:
    price = request.body["unit_price"]
    return ProductSet(
        product_id=request.path["product_id"],
        on_hand=request.body["on_hand"],
        unit_price=Money(price["amount"], price["currency"]),
        name=request.body.get("name"),
    )


def _restocked(request: Request) -> Restocked:
    return Restocked(product_id=request.path["product_id"], quantity=request.body["quantity"])


def _answer(outcome: Outcome) -> Answer | Refusal:
    match outcome.events:
        case (BelowReserved(reserved=reserved),):
            return Refusal(409, "below_reserved", f"{reserved} of it are held for orders; on_hand cannot be less.")
        case (ProductUnknown(),):
            return Refusal(404, "product_not_found", "There is no such product.")
    (product,) = outcome.states
    assert product is not None
    return Answer(200, show(product))


routes: tuple[Route, ...] = (
    Tell(
        method="PUT",
        path="/v1/inventory/{product_id}",
        summary="Set a product's stock and price",
        takes="product_request",
        event=_set,
        answer=_answer,
        returns="product",
        refusals=(409,),
    ),
    Tell(
        method="POST",
        path="/v1/inventory/{product_id}/restock",
        summary="Add to a product's stock",
        takes="restock_request",
        event=_restocked,
        answer=_answer,
        returns="product",
        keyed=True,
        refusals=(404,),
    ),
    Show(path="/v1/inventory/{product_id}", summary="Show a product", of=Product, show=show, returns="product"),
    Browse(path="/v1/inventory", summary="List products by id", of=Product, show=show, returns="product"),
)
