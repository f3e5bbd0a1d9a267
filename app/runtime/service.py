"""
The service interface of a running module, and the reasons for which it rejects an event without deciding about it.

`app.runtime.runner.ModuleRunner` implements it.
"""

from __future__ import annotations

__all__ = ["IdempotencyKeyReused", "ModuleService", "Overloaded", "Reply", "StateService"]

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from attrs import define

from app.runtime.states.state_changes import ChangeReader
from app.storage.audit import Audit
from app.storage.errors import TemporarilyUnavailable
from app.telemetry.trace import TraceContext
from modules.filters import Condition
from modules.module import DecisionOutcome, Module, State
from modules.routes import Rejection, Response


class Overloaded(TemporarilyUnavailable):
    """The outbox backlog is over its cap."""

    code = "overloaded"


class IdempotencyKeyReused(Exception):
    """The idempotency key was used before, with another request body."""

    code = "idempotency_key_reused"


@define
class Reply:
    """The reply to a submitted event; *is_replay* when its idempotency key had been used for it before."""

    response: Response | Rejection
    is_replay: bool = False


class StateService(Protocol):
    """The committed states of one module."""

    @property
    def module(self) -> Module:
        """The module descriptor."""

    async def get(self, cls: type, key: str) -> State | None:
        """
        Return the state of *cls* under *key*, or None.

        Raises:
            StorageUnavailable: The database is unavailable.
        """

    async def list_states(
        self, cls: type, filters: Mapping[str, Any], *, after: str | None, limit: int, newest_first: bool
    ) -> Sequence[State]:
        """
        Return up to *limit* states of *cls* whose columns equal *filters*, in key order, beyond *after*.

        Raises:
            StorageUnavailable: The database is unavailable.
        """

    async def search(
        self, cls: type, conditions: Sequence[Condition], *, after: str | None, limit: int, newest_first: bool
    ) -> tuple[Sequence[State], str | None]:
        """
        Return up to *limit* states of *cls* that meet all *conditions*, in key order, beyond *after*.

        A search examines a limited number of states. The second result is the key to continue *after* if it stopped
        before the end of the list with fewer than *limit* states, and None otherwise.

        Raises:
            StorageUnavailable: The database is unavailable.
        """


class ModuleService(StateService, Protocol):
    """One running module, as the HTTP layer and the workers use it."""

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
        audit: Audit | None = None,
    ) -> Reply:
        """
        Submit *event*; return the reply once everything that follows from the event is committed to disk.

        *id* is the event's id. *respond* builds the reply inside the transaction. *new_key* is the key of the state that
        the event creates, if it was generated for this event: the module then skips the look-up of that state. With an
        idempotency *key* (unique to caller and route) the first reply is stored; a later call with the same *key* and an
        equal *fingerprint* gets it again and changes nothing. What the event changes is written to the audit if *audit*
        names who requests it.

        Raises:
            IdempotencyKeyReused: *key* was used with another *fingerprint*.
            Overloaded: *sheds_load* is set and the outbox backlog is over its cap.
            CommitOutcomeUnknown: The database became unavailable during the commit; it is unknown whether anything was stored.
            StorageUnavailable: The database is unavailable; nothing was stored.
        """

    def watch(self, cls: type, key: str) -> AbstractAsyncContextManager[AsyncIterator[None]]:
        """Enter to get an iterator that yields after each change of a state; several changes may be merged into one."""

    @property
    def changes(self) -> ChangeReader:
        """Reads which of the module's states have changed."""
