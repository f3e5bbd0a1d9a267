"""
A running module as the web and the workers see it: one door, the same for everybody.

`app.runtime.runner.ModuleRunner` is the door; what is written here is all that others may rely on.
"""

from __future__ import annotations

__all__ = ["ModuleService", "Reply"]

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from attrs import define

from app.telemetry.trace import TraceContext
from modules.module import DecisionOutcome, Module, State
from modules.routes import Rejection, Response


@define
class Reply:
    """The answer to something that was told; *is_replay* when the key had been used for it before."""

    response: Response | Rejection
    is_replay: bool = False


class ModuleService(Protocol):
    """One module, running."""

    @property
    def module(self) -> Module:
        """Its door plate."""

    async def submit(
        self,
        event: Any,
        *,
        id: str,
        trace: TraceContext,
        respond: Callable[[DecisionOutcome], Response | Rejection],
        is_express: bool = False,
        key: str | None = None,
        fingerprint: str = "",
        sheds_load: bool = False,
        new_key: str | None = None,
    ) -> Reply:
        """
        Tell the module that *event* happened; return once what follows from it is committed to disk.

        *id* is the event's own. *new_key* is the key of the state that it creates, if that was made up for it: nothing is
        there yet, so nobody looks. With *key* (unique to caller and route) the first call's answer is kept; a further call
        with an equal *fingerprint* gets it again and changes nothing.

        Raises:
            KeyReused: *key* was used with another *fingerprint*.
            Overloaded: *sheds_load* is set and the backlog is over its cap.
            Unsettled: The database went away while it committed; whether anything was stored is not known.
            Unavailable: The database is out of reach; nothing was stored.
        """

    async def get(self, cls: type, key: str) -> State | None:
        """
        Return the state of *cls* under *key*, or None.

        Raises:
            Unavailable: The database is out of reach.
        """

    async def list_states(
        self, cls: type, filters: Mapping[str, Any], *, after: str | None, limit: int, newest_first: bool
    ) -> Sequence[State]:
        """
        Return up to *limit* states of *cls* whose columns equal *filters*, by key, beyond *after*.

        Raises:
            Unavailable: The database is out of reach.
        """

    def watch(self, cls: type, key: str) -> AbstractAsyncContextManager[AsyncIterator[None]]:
        """Enter to be woken (by an item of the iterator) after each change to a state; changes may be merged."""
