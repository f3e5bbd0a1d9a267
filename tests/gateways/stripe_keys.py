"""Idempotency keys as Stripe documents them (https://docs.stripe.com/api/idempotent_requests)."""

from __future__ import annotations

__all__ = ["KEY_SECONDS", "Answer", "KeyMemory"]

from collections.abc import Callable, Mapping

from attrs import define, field, frozen

KEY_SECONDS = 24 * 3600
"""How long a key is remembered."""


@frozen
class Answer:
    """A status and a body, as they are saved under a key."""

    status: int
    body: bytes
    request_id: str


@define
class _Entry:
    fingerprint: tuple[str, ...]
    since: float
    answer: Answer | None = None


@define
class KeyMemory:
    """
    The saved answers, by key.

    The status and body of the first call are replayed, those with 500 included. A key is in use until its first call has
    ended; a call that ends without a saved answer (a parameter that is refused, 409, 429) leaves no trace.
    """

    wall_seconds: Callable[[], float]
    _entries: dict[str, _Entry] = field(factory=dict)

    def begin(self, key: str, path: str, form: Mapping[str, str]) -> Answer | str | None:
        """Return the saved answer, ``in_use``, ``other_request``, or None if the call is the first one under *key*."""
        fingerprint = (path, *(f"{name}={form[name]}" for name in sorted(form)))
        entry = self._entries.get(key)
        if entry is None or entry.since <= self.wall_seconds() - KEY_SECONDS:
            self._entries[key] = _Entry(fingerprint, self.wall_seconds())
            return None
        if entry.fingerprint != fingerprint:
            return "other_request"
        return entry.answer or "in_use"

    def save(self, key: str, answer: Answer) -> None:
        """End the first call under *key* with the answer to replay."""
        self._entries[key].answer = answer

    def drop(self, key: str) -> None:
        """End the first call under *key* without a trace, unless its answer is saved."""
        if key in self._entries and self._entries[key].answer is None:
            del self._entries[key]
