"""Ids of spans that no header has: they follow from what the span is about, so that another process can name it as a parent."""

from __future__ import annotations

__all__ = ["process_span_id"]

from hashlib import blake2b


def process_span_id(event_id: str, consumer: str) -> str:
    """Return the id of the span in which *consumer* decides about the event; what follows from that has it as its parent."""
    return blake2b(f"{event_id} {consumer}".encode("utf-8", "replace"), digest_size=8).hexdigest()
