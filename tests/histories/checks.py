"""Checks of a recorded history, and of the money that the provider has taken."""

from __future__ import annotations

__all__ = ["COUNTED_STOCK", "PRICE", "Books", "history_errors", "money_errors"]

from collections.abc import Collection, Hashable, Iterator
from typing import Any, Protocol

from tests.histories.clients import COUNTED, SOLD, History
from tests.histories.linearizability import Operation, SearchTooLarge, Step, is_linearizable
from tests.histories.models import ABSENT, counter_step, key_step, order_step, stock_errors

COUNTED_STOCK = 10
PRICE = 100
"""The price of every product, in minor units."""


class Books(Protocol):
    """What the provider has taken and returned, in minor units by order."""

    def captured(self) -> dict[str, list[int]]:
        """Return the amount of each charge."""

    def refunded(self) -> dict[str, list[int]]:
        """Return the amount of each refund."""


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


def money_errors(books: Books, orders: Collection[Any]) -> list[str]:
    """Return the orders whose money differs from the books of the provider: charged once, refunded once and whole."""
    captured, refunded = books.captured(), books.refunded()
    errors = [f"charged without an order: {order_id}" for order_id in captured.keys() - {each["order_id"] for each in orders}]
    for order in orders:
        charges, refunds = captured.get(order["order_id"], []), refunded.get(order["order_id"], [])
        # An order that is cancelled before it knows its reservation has no total; payments may have charged it meanwhile.
        total = PRICE * sum(line["quantity"] for line in order["items"])
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
