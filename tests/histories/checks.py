"""Checks of a recorded history, and of the money that the provider has taken."""

from __future__ import annotations

__all__ = ["history_errors", "money_errors"]

from collections.abc import Collection, Hashable, Iterator
from typing import Any

from tests.gateways.fault import FaultyStripe
from tests.histories.clients import COUNTED, SOLD, History
from tests.histories.linearizability import Operation, SearchTooLarge, Step, is_linearizable
from tests.histories.models import ABSENT, counter_step, key_step, order_step, stock_errors

COUNTED_STOCK = 10


def history_errors(history: History) -> list[str]:
    """Return what the history contradicts: each object with its operations in the order of their calls."""
    errors = list(history.unexpected)
    for key, operations in history.keys.items():
        errors += _search(f"key {key}", key_step, ABSENT, operations)
    for order_id, operations in history.orders.items():
        errors += _search(f"order {order_id}", order_step, ("processing", None), operations)
    for product_id in COUNTED:
        errors += _search(f"product {product_id}", counter_step, COUNTED_STOCK, history.stock[product_id])
    for product_id, initial in SOLD.items():
        errors += stock_errors(initial, history.stock[product_id], history.sold[product_id])
    return errors


def money_errors(stripe: FaultyStripe, orders: Collection[Any]) -> list[str]:
    """Return the orders whose money differs from the books of the provider: charged once, refunded once and whole."""
    captured, refunded = stripe.captured(), stripe.refunded()
    errors = [f"charged without an order: {order_id}" for order_id in captured.keys() - {each["order_id"] for each in orders}]
    for order in orders:
        charges, refunds = captured.get(order["order_id"], []), refunded.get(order["order_id"], [])
        total = order["total"]["amount"] if order["total"] else None
        wanted = [([total], [])] if order["status"] == "confirmed" else [([], []), ([total], [total])]
        if (charges, refunds) not in wanted:
            errors.append(f"charged {charges}, refunded {refunds}: {order}")
    return errors


def _search(name: str, step: Step, initial: Hashable, operations: list[Operation]) -> Iterator[str]:
    try:
        if is_linearizable(step, initial, operations):
            return
        reason = "not linearizable"
    except SearchTooLarge as error:
        reason = str(error)
    yield "\n    ".join([f"{name}: {reason}", *map(_line, sorted(operations, key=lambda each: each.start))])


def _line(operation: Operation) -> str:
    return f"{operation.start:.4f} .. {operation.end:.4f} {operation.name} {operation.value} -> {operation.reply}"
