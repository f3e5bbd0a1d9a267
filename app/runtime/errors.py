"""Reasons for which a running module rejects a request without deciding about it."""

from __future__ import annotations

__all__ = ["IdempotencyKeyReused", "Overloaded"]

from app.storage.errors import TemporarilyUnavailable


class Overloaded(TemporarilyUnavailable):
    """The outbox backlog is over its cap."""

    code = "overloaded"


class IdempotencyKeyReused(Exception):
    """The idempotency key was used before, with another request body."""

    code = "idempotency_key_reused"
