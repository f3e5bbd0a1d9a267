"""The situations that the runs of a night must reach: what is never reached is not tested, whatever the assertions are."""

from __future__ import annotations

__all__ = ["SITUATIONS", "never_reached", "table"]

from collections import Counter

_BY_GROUP: dict[str, tuple[str, ...]] = {
    "order": (
        "processing", "reserved", "confirmed", "waits for payment",
        "cancelled, insufficient_stock", "cancelled, mixed_currency", "cancelled, payment_declined",
        "cancelled, payment_unavailable", "cancelled, requested", "cancelled, timed_out", "cancelled, unknown_product",
    ),
    "payment": ("pending", "captured", "declined", "unknown", "unknown under review", "refunded"),
    "refund": ("pending", "succeeded", "failed"),
    "reservation": ("held", "rejected", "shipped", "released"),
    "breaker": tuple(
        f"{operation} {state}" for operation in ("charge", "refund", "look_up") for state in ("open", "half_open", "closed")
    ),
    "kill": (
        "before write commit", "after write commit", "before write connect", "after write connect",
        "before charge", "at charge", "after charge", "before look-up", "at look-up", "before refund", "at refund", "after refund",
        "before publish", "before ack", "while it is idle", "after a stop",
    ),
    "power lost": ("before file sync", "before file write", "before write commit", "after write commit", "while it is idle"),
    "disk": ("disk full", "database locked", "disk error", "database damaged"),
    "bus": ("publish fails", "publish fails, and arrives", "publish arrives twice", "publish arrives late", "away"),
    "clock": ("ahead by much", "ahead by little", "back by much", "back by little"),
    "handler raises": (
        "inventory OrderCreated", "inventory OrderConfirmed", "inventory OrderCancelled", "orders StockReserved",
        "orders PaymentCaptured", "payments StockReserved", "payments ChargeSucceeded",
    ),
    "dead letter": ("failed", "waits"),
    "answer": (
        "503 database_unavailable", "503 outcome_unknown", "422 key reused", "replayed for its key", "409 not_paid", "409 exceeds_left",
        "409 order_cancelled", "409 wrong_currency",
    ),
    "client": ("no answer", "gives up without a key"),
    "webhook": (
        "payment_intent.succeeded handled", "payment_intent.succeeded repeated", "payment_intent.succeeded put_aside", "payment_intent.payment_failed handled",
        "refund.updated handled", "refund.failed handled", "charge.refunded handled",
    ),
    "database": (
        "insert conflict, inbox", "insert conflict, reservation", "waits for a row", "skips a locked row", "lock timeout",
        "serialization failure", "slow statements", "connection cut", "connection cut before the commit", "connection cut after the commit",
        "commit without an outcome, had happened", "commit without an outcome, had not happened", "server down", "lead handed over",
        "sessions of a lost machine", "transaction of a halted process ended",
    ),
    "replica": (
        "goes on after ack_wait", "goes on after ack_wait with work", "goes on before ack_wait", "goes on before ack_wait with work",
        "one of each is left",
    ),
    "analytics": ("killed before take", "killed before commit", "killed after commit"),
    "process": ("start fails without its database",),
}  # fmt: skip

SITUATIONS = tuple(f"{group}: {name}" for group, names in _BY_GROUP.items() for name in names)
"""As `tests.simulation.world.world.World.saw` counts them."""


def never_reached(reached: Counter[str]) -> list[str]:
    """Return those of `SITUATIONS` that *reached*, which counts the runs by situation, does not have."""
    return [situation for situation in SITUATIONS if not reached[situation]]


def table(reached: Counter[str]) -> str:
    """Return in how many runs each situation was reached, those that are not in `SITUATIONS` last."""
    others = sorted(reached.keys() - set(SITUATIONS))
    return "\n".join(f"{reached[situation]:7}  {situation}" for situation in (*SITUATIONS, *others))
