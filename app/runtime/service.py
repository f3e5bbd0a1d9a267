"""
A running module as the web and the workers see it: one door, the same for everybody.

`app.runtime.runner.Shell` is the door; what is written here is all that others may rely on.
"""

from __future__ import annotations

__all__ = ["Context", "Door", "KeyReused", "Overloaded", "Shed", "Told", "Unavailable", "Unsettled"]

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from attrs import define

from modules.module import Module, Outcome, State
from modules.route import Answer, Refusal


class Shed(Exception):
    """Nothing was stored: come again after *retry_after_seconds*."""

    code = "unavailable"

    def __init__(self, detail: str, retry_after_seconds: int = 1) -> None:
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        super().__init__(detail)


class Unavailable(Shed):
    """The database is out of reach."""

    code = "database_unavailable"


class Unsettled(Unavailable):
    """The database went out of reach while it committed: something was stored or not, nobody knows which."""

    code = "outcome_unknown"


class Overloaded(Shed):
    """The backlog is over its cap."""

    code = "overloaded"


class KeyReused(Exception):
    """The idempotency key was used before, for another body."""

    code = "idempotency_key_reused"


@define  # not frozen, for each message makes one: that would take three times as long
class Context:
    """Who caused something, for logs and traces: *correlation_id* and a valid W3C *traceparent*."""

    correlation_id: str
    traceparent: str


@define
class Told:
    """The answer to something that was told; *is_replay* when the key had been used for it before."""

    answer: Answer | Refusal
    is_replay: bool = False


class Door(Protocol):
    """One module, running."""

    @property
    def module(self) -> Module:
        """Its door plate."""

    async def tell(
        self,
        event: Any,
        *,
        id: str,
        context: Context,
        answer: Callable[[Outcome], Answer | Refusal],
        express: bool = False,
        key: str | None = None,
        fingerprint: str = "",
        sheds: bool = False,
        fresh: str | None = None,
    ) -> Told:
        """
        Tell the module that *event* happened; return once what follows from it is committed to disk.

        *id* is the event's own. *fresh* is the key of the state that it creates, if that was made up for it: nothing is
        there yet, so nobody looks. With *key* (unique to caller and route) the first call's answer is kept; a further call
        with an equal *fingerprint* gets it again and changes nothing.

        Raises:
            KeyReused: *key* was used with another *fingerprint*.
            Overloaded: *sheds* is set and the backlog is over its cap.
            Unsettled: The database went away while it committed; whether anything was stored is not known.
            Unavailable: The database is out of reach; nothing was stored.
        """

    async def get(self, cls: type, key: str) -> State | None:
        """
        Return the state of *cls* under *key*, or None.

        Raises:
            Unavailable: The database is out of reach.
        """

    async def browse(
        self, cls: type, filters: Mapping[str, Any], *, after: str | None, limit: int, newest_first: bool
    ) -> Sequence[State]:
        """
        Return up to *limit* states of *cls* whose columns equal *filters*, by key, beyond *after*.

        Raises:
            Unavailable: The database is out of reach.
        """

    def watch(self, cls: type, key: str) -> AbstractAsyncContextManager[AsyncIterator[None]]:
        """Enter to be woken (by an item of the iterator) after each change to a state; changes may be merged."""
