"""Dead letters for the tests of the console."""

from __future__ import annotations

__all__ = ["BODY", "dead_letter", "order_id"]

import json
from datetime import UTC, datetime
from typing import Any

from bus.port import DeadLetter, Message

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def order_id(n: int) -> str:
    """Return the id of order *n*."""
    return f"0192f0c1-2b3c-7d4e-8f50-{n:012}"


BODY: dict[str, Any] = {
    "order_id": order_id(1), "customer_id": "c-1", "items": [{"product_id": "SKU-1", "quantity": 2}], "version": "v1",
}  # fmt: skip
"""A body of orders.created.v1."""


def dead_letter(
    n: int,
    body: Any = BODY,
    detail: str = "",
    consumer: str = "inventory",
    error: str = "failed",
    subject: str = "orders.created.v1",
    at: datetime = AT,
) -> DeadLetter:
    """Return the dead letter number *n*, of the time *at*."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"ce-id": f"event-{n}", "ce-type": subject, "ce-correlationid": f"c-{n}"}
    message = Message(subject, f"message-{n}", content, order_id(n), headers)
    return DeadLetter("", consumer, message, error, detail or f"KeyError: 'SKU-{n}'", 5, at, at)
