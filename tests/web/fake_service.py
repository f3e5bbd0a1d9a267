"""A door that keeps what `app.runtime.service.ModuleService` promises, with everything in memory, and trouble on request."""

from __future__ import annotations

__all__ = ["FakeService"]

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import attrs

from app.runtime.errors import IdempotencyKeyReused, Overloaded
from app.runtime.service import Reply
from app.telemetry.trace import TraceContext
from modules.module import DecisionOutcome, Module
from modules.routes import Rejection, Response

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class FakeService:
    """One module, running on dictionaries."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.states: dict[tuple[type, str], Any] = {}
        self.kept: dict[str, tuple[str, Response | Rejection]] = {}
        self.told: list[tuple[Any, str, TraceContext, bool]] = []
        self.trouble: Exception | None = None
        """Raised by every call while it is set."""
        self.is_full = False
        self.watchers: dict[tuple[type, str], list[asyncio.Event]] = {}
        self.reads = 0
        """Calls of `get`, those that failed included."""
        self.happened = asyncio.Event()
        """Set when a state is read, and when somebody begins or ends to watch."""

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
        self._check()
        if key is not None and key in self.kept:
            known, given = self.kept[key]
            if known != fingerprint:
                raise IdempotencyKeyReused
            return Reply(given, is_replay=True)
        if sheds_load and self.is_full:
            raise Overloaded("over its cap", retry_after_seconds=3)
        keys = self.module.keys(event)
        decision = self.module.decide([self.states.get(k) for k in keys], event, NOW)
        for state in decision.states:
            self.put(state)
        self.told.append((event, id, trace, is_express))
        given = respond(DecisionOutcome(tuple(self.states.get(k) for k in keys), decision.events))
        if key is not None:
            self.kept[key] = fingerprint, given
        return Reply(given)

    async def get(self, cls: type, key: str) -> Any:
        self.reads += 1
        self.happened.set()
        self._check()
        return self.states.get((cls, key))

    async def list_states(
        self, cls: type, filters: Mapping[str, Any], *, after: str | None, limit: int, newest_first: bool
    ) -> Sequence[Any]:
        self._check()
        rows = sorted(((key, s) for (of, key), s in self.states.items() if of is cls), reverse=newest_first)
        return [
            state
            for key, state in rows
            if all(getattr(state, name) == value for name, value in filters.items())
            and (after is None or (key < after if newest_first else key > after))
        ][:limit]

    @asynccontextmanager
    async def watch(self, cls: type, key: str) -> AsyncIterator[AsyncIterator[None]]:
        woken = asyncio.Event()
        self.watchers.setdefault((cls, key), []).append(woken)
        self.happened.set()
        try:
            yield self._wakes(woken)
        finally:
            self.watchers[cls, key].remove(woken)
            self.happened.set()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait, for five seconds at most, until something has happened that makes it so."""
        async with asyncio.timeout(5):
            while not is_so():
                self.happened.clear()
                await self.happened.wait()

    def put(self, state: Any, *, silently: bool = False) -> None:
        """Set a state; *silently* as another process does it, without waking anybody."""
        key = type(state), getattr(state, attrs.fields(type(state))[0].name)
        self.states[key] = state
        if not silently:
            for woken in self.watchers.get(key, ()):
                woken.set()

    def _check(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    @staticmethod
    async def _wakes(woken: asyncio.Event) -> AsyncIterator[None]:
        while True:
            await woken.wait()
            woken.clear()
            yield
