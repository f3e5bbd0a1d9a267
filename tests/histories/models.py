"""
What the HTTP API promises about one object, as models for the search, and the weaker promise about a product that is sold.

Linearizable, through any replica:

- an Idempotency-Key: a register that is written once, with a body and an order id (`key_step`);
- the order: a state machine whose final reason stays (`order_step`). The modules move it on at a moment that no client
  sees, so a read may find any state that can be reached from the last one, and never an earlier one;
- the stock of a product that is not sold: a counter (`counter_step`).

The stock of a product that is sold follows the orders later, so a read is held between two bounds (`stock_errors`).
"""

from __future__ import annotations

__all__ = ["ABSENT", "counter_step", "key_step", "order_step", "stock_errors"]

from collections.abc import Iterable, Sequence
from typing import Any

from tests.histories.linearizability import Operation

ABSENT = None
"""A key that was never used."""

_REACHABLE = {
    "processing": ("processing", "reserved", "confirmed", "cancelled"),
    "reserved": ("reserved", "confirmed", "cancelled"),
    "confirmed": ("confirmed",),
    "cancelled": ("cancelled",),
}
"""What a read may find after a state, without a cancellation by the customer."""


def key_step(state: Any, operation: Operation) -> Sequence[Any]:
    """
    Return the states of an Idempotency-Key after a POST: `ABSENT`, or its body and its order id, None if not yet seen.

    The value is the body. The reply is ``("accepted", order_id, is_replayed)`` or ``("reused",)``.
    """
    body, reply = operation.value, operation.reply
    if state is ABSENT:
        if reply is None:
            return [(body, None)]
        return [(body, reply[1])] if reply[0] == "accepted" and not reply[2] else []
    known_body, known_id = state
    if reply is None:
        return [state]
    if reply[0] == "reused":
        return [state] if body != known_body else []
    _, order_id, is_replayed = reply
    return [(body, order_id)] if body == known_body and is_replayed and known_id in (None, order_id) else []


def order_step(state: Any, operation: Operation) -> Sequence[Any]:
    """
    Return the states of an order, ``(status, reason)``, after a GET or a cancel; the reply is the state that was read.

    Only a cancel leads away from ``confirmed``, or to the reason ``requested``; it leaves a cancelled order as it is.
    """
    status, reason = state
    if operation.name == "cancel":
        # Until the cancel takes effect, the order may have ended by itself, for a reason that only the reply or a read shows.
        cancelled = [(status, reason)] if status == "cancelled" else [("cancelled", "requested"), *_ended(status, operation)]
        return [each for each in cancelled if operation.reply in (None, each)]
    found, found_reason = operation.reply
    if found not in _REACHABLE[status]:
        return []
    if status == "cancelled":
        return [state] if found_reason == reason else []
    if found == "cancelled":
        return [(found, found_reason)] if found_reason not in (None, "requested") else []
    return [(found, found_reason)] if found_reason is None else []


def _ended(status: str, operation: Operation) -> Sequence[Any]:
    """Return how the order has been cancelled by the system before the cancel of *operation*, if it shows that."""
    if operation.reply is None or status == "confirmed" or operation.reply[1] in (None, "requested"):
        return []
    return [operation.reply]


def counter_step(state: int, operation: Operation) -> Sequence[int]:
    """Return the stock after a restock of *value* pieces or a read; the reply is the stock on hand in the answer."""
    following = state + operation.value if operation.name == "restock" else state
    return [following] if operation.reply in (None, following) else []


def stock_errors(initial: int, operations: Iterable[Operation], sold: Iterable[Operation]) -> list[str]:
    """
    Return the reads of a product that contradict its restocks and the orders for it.

    *operations* are its restocks and its reads, whose reply is ``(on_hand, reserved, available)``. *sold* are the orders,
    with the quantity as value. On hand is at most what restocks that were called before the end of the read have brought, and
    at least what restocks answered before its start have brought, less all that was ordered before its end. A cancelled order
    may be counted: this is a bound, not a balance.
    """
    operations, sold = list(operations), list(sold)
    errors = []
    for read in (each for each in operations if each.name == "read" and each.is_known):
        on_hand, reserved, available = read.reply
        restocks = [each for each in operations if each.name == "restock"]
        ordered = sum(each.value for each in sold if each.start <= read.end)
        most = initial + sum(each.value for each in restocks if each.start <= read.end)
        least = initial + sum(each.value for each in restocks if each.end < read.start) - ordered
        if not (available == on_hand - reserved and available >= 0 and 0 <= reserved <= ordered):
            errors.append(f"inconsistent: {read}")
        if not max(0, least) <= on_hand <= most:
            errors.append(f"not within {least} and {most}: {read}")
    return errors
