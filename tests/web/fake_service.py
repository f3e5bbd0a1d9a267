"""An in-memory service with the promises of `app.runtime.service.ModuleService`, and with failures on request."""

from __future__ import annotations

__all__ = ["FakeService"]

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from app.runtime.service import IdempotencyKeyReused, Overloaded, Reply
from app.storage.audit import Audit
from app.storage.search.changes import ChangeMark, ChangePage
from app.telemetry.trace import TraceContext
from modules.filters import Condition
from modules.module import DecisionOutcome, Module
from modules.routes import Rejection, Response

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class FakeService:
    """One module that keeps its states in dictionaries."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.states: dict[tuple[type, str], Any] = {}
        self.idempotent_replies: dict[str, tuple[str, Response | Rejection]] = {}
        """By idempotency key: the fingerprint of the first request, and its response."""
        self.audited: list[Audit | None] = []
        self.submitted: list[tuple[Any, str, TraceContext, bool]] = []
        self.failure: Exception | None = None
        """Raised by every call while it is set."""
        self.is_overloaded = False
        self.gate = asyncio.Event()
        """While it is cleared, submitted events wait."""
        self.gate.set()
        self.changes = FakeChanges(self)
        self.watchers: dict[tuple[type, str], list[asyncio.Event]] = {}
        self.conditions: list[Condition] = []
        """Those of the latest search; only the filter ``owner`` is applied."""
        self.stops_at: str | None = None
        """The key at which every search says that it stopped."""
        self.reads = 0
        """Calls of `get`, failed ones included."""
        self.activity = asyncio.Event()
        """Set when an event is submitted or a state is read, and when a watch begins or ends."""

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
        self._check()
        await self.gate.wait()
        if key is not None and key in self.idempotent_replies:
            first_fingerprint, response = self.idempotent_replies[key]
            if first_fingerprint != fingerprint:
                raise IdempotencyKeyReused
            return Reply(response, is_replay=True)
        if sheds_load and self.is_overloaded:
            raise Overloaded("over its limit", retry_after_seconds=3)
        keys = self.module.keys(event)
        decision = self.module.decide([self.states.get(k) for k in keys], event, NOW)
        for state in decision.states:
            self.put(state)
        self.activity.set()
        self.audited.append(audit)
        self.submitted.append((event, id, trace, is_express))
        response = respond(DecisionOutcome(tuple(self.states.get(k) for k in keys), decision.events))
        if key is not None:
            self.idempotent_replies[key] = fingerprint, response
        return Reply(response)

    async def get(self, cls: type, key: str) -> Any:
        self.reads += 1
        self.activity.set()
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

    async def search(
        self, cls: type, conditions: Sequence[Condition], *, after: str | None, limit: int, newest_first: bool
    ) -> tuple[Sequence[Any], str | None]:
        self.conditions = list(conditions)
        equal = {c.columns[0]: c.values[0] for c in conditions if c.filter.name == "owner"}
        found = await self.list_states(cls, equal, after=after, limit=limit, newest_first=newest_first)
        return found, self.stops_at

    @asynccontextmanager
    async def watch(self, cls: type, key: str) -> AsyncIterator[AsyncIterator[None]]:
        changed = asyncio.Event()
        self.watchers.setdefault((cls, key), []).append(changed)
        self.activity.set()
        try:
            yield self._changes(changed)
        finally:
            self.watchers[cls, key].remove(changed)
            self.activity.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait, for thirty seconds at most, until *condition* holds after a read or after a watch began or ended."""
        async with asyncio.timeout(30):
            while not condition():
                self.activity.clear()
                await self.activity.wait()

    def put(self, state: Any, *, silently: bool = False) -> None:
        """Set a state; *silently* as another process does, without a notification of the watchers."""
        key = type(state), getattr(state, attrs.fields(type(state))[0].name)
        self.states[key] = state
        self.changes.note(*key, is_own=not silently)
        if not silently:
            for changed in self.watchers.get(key, ()):
                changed.set()

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    @staticmethod
    async def _changes(changed: asyncio.Event) -> AsyncIterator[None]:
        while True:
            await changed.wait()
            changed.clear()
            yield


class FakeChanges:
    """The changes of a service's states; a time on its clock is one later at each change and each mark."""

    def __init__(self, service: FakeService) -> None:
        self.is_only_writer = True
        self._service = service
        self._time = NOW
        self._changed_at: dict[tuple[type, str], datetime] = {}
        self._watches: list[tuple[type, set[str]]] = []
        self.marks = 0
        """Looks and beginnings of feeds."""
        self.searches = 0

    def _now(self) -> datetime:
        self._time += timedelta(milliseconds=1)
        return self._time

    def note(self, cls: type, key: str, is_own: bool) -> None:
        """Note that the state under *key* has changed, by this process if *is_own*."""
        self._changed_at[cls, key] = self._now()
        for of, keys in self._watches if is_own else ():
            if of is cls:
                keys.add(key)

    @contextmanager
    def watch(self, cls: type) -> Iterator[set[str]]:
        keys: set[str] = set()
        self._watches.append((cls, keys))
        yield keys
        self._watches.remove((cls, keys))

    async def mark(self, cls: type) -> ChangeMark:
        self._service._check()
        self.marks += 1
        return ChangeMark(self._now(), None if self.is_only_writer else "1")

    async def since(self, cls: type, mark: ChangeMark, after: str | None) -> ChangePage:
        self._service._check()
        self.searches += 1
        found = [
            (key, changed_at.isoformat())
            for (of, key), changed_at in sorted(self._changed_at.items(), key=lambda each: each[0][1])
            if of is cls and changed_at >= mark.at and key > (after or "")
        ]
        return ChangePage(found[:2], found[1][0] if len(found) > 2 else None)

    async def load(self, cls: type, keys: Sequence[str]) -> Mapping[str, Any]:
        self._service._check()
        return {key: state for key in keys if (state := self._service.states.get((cls, key))) is not None}
