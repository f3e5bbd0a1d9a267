"""
The changes of all states of one class, looked for once and shared by every stream of the process.

While a stream is open, a task looks once a second which states have changed, and remembers the keys that each look found.
A stream keeps nothing but the moment up to which it has sent: a client that reads slowly falls behind, and then gets the
latest state of each key once. What a feed no longer remembers, or never saw, is searched in the database.
"""

from __future__ import annotations

__all__ = ["KEYS_MAX", "LOAD_MAX", "LOOK_SECONDS", "Feed", "FeedRun", "Look", "Shown"]

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from datetime import datetime, timedelta
from operator import itemgetter
from secrets import token_hex
from time import monotonic
from typing import Any

import orjson
from attrs import frozen
from loguru import logger

from app.runtime.service import ModuleService
from app.runtime.states.state_changes import ChangeReader
from app.storage.errors import StorageUnavailable
from app.storage.search.changes import VISIBILITY_DELAY_MAX, ChangeMark

LOOK_SECONDS = 1.0
KEYS_MAX = 20_000
"""Most keys that a feed remembers; a stream that is further behind searches the database."""

LOAD_MAX = 200
"""States that one statement loads, and that a stream holds at once."""

LINGER_SECONDS = 60.0
"""How long a feed goes on without a stream, for clients that connect again."""


@frozen
class Look:
    """The keys of the states that have changed up to the moment *at* and that no earlier look has found."""

    at: datetime
    keys: Sequence[str]


@frozen
class Shown:
    """A state and its JSON, which is None where the state is not shown."""

    state: Any
    data: str | None


class FeedRun:
    """
    One run of a feed, from its first stream to a while after its last one.

    A position is the moment of a look. Every change that a run has not reported up to a position is reported later; a run
    of another process, or after a restart, guarantees it only for changes that became visible within `VISIBILITY_DELAY_MAX`.
    """

    def __init__(self, changes: ChangeReader, cls: type, show: Callable[[Any], Any], looks_every_seconds: float) -> None:
        self._changes = changes
        self._cls = cls
        self._show = show
        self._looks_every_seconds = looks_every_seconds
        self.instance = token_hex(4)
        self.followers = 0
        self.is_ended = False
        self._unused_since = monotonic()
        self._looks: deque[Look] = deque()
        self._key_count = 0
        self._latest: dict[str, Shown] = {}
        self._versions: dict[str, str] = {}
        self._next_look: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def position(self) -> datetime:
        """The moment of the latest look."""
        return self._position

    async def start(self, closed: asyncio.Future[None]) -> None:
        """
        Begin to look, until nothing follows any more or *closed* is done.

        Raises:
            StorageUnavailable: The database is unavailable.
        """
        with ExitStack() as stack:
            # The watch begins before the mark, so that no change between the two is lost.
            self._changed = stack.enter_context(self._changes.watch(self._cls)) if self._changes.is_only_writer else None
            self._mark: ChangeMark = await self._changes.mark(self._cls)
            self._begins_at = self._position = self._mark.at
            self._task = asyncio.create_task(self._run(closed, stack.pop_all()))

    def leave(self) -> None:
        """Count one stream less."""
        self.followers -= 1
        self._unused_since = monotonic()

    def resumed(self, position: datetime, instance: str) -> datetime | None:
        """
        Return from which position of this run a client has missed nothing that has *position* of the run *instance*.

        None: this run does not remember so much.
        """
        since = position if instance == self.instance else position - VISIBILITY_DELAY_MAX
        return None if since < self._begins_at else min(since, self.position)

    def looks_after(self, position: datetime) -> list[Look] | None:
        """Return the looks after *position* that have found something; None if this run does not remember all of them."""
        if position < self._begins_at:
            return None
        found = []
        for look in reversed(self._looks):
            if look.at <= position:
                break
            found.append(look)
        return found[::-1]

    async def load(self, keys: Sequence[str]) -> list[Shown]:
        """
        Return the present states under *keys*, at most `LOAD_MAX`, in this order; a key without a state is left out.

        Raises:
            StorageUnavailable: The database is unavailable.
        """
        latest = self._latest
        missing = [key for key in keys if key not in latest]
        found = await self._read(missing) if missing else {}
        return [each for key in keys if (each := latest.get(key) or found.get(key)) is not None]

    async def changed_since(self, position: datetime) -> AsyncIterator[Sequence[str]]:
        """
        Search the database for what has changed since *position*; yield up to `LOAD_MAX` keys at a time, perhaps none.

        Raises:
            StorageUnavailable: The database is unavailable.
        """
        after = None
        while True:
            versions, after = await self._changes.since(self._cls, ChangeMark(position), after)
            for at in range(0, max(1, len(versions)), LOAD_MAX):  # once at least, so that a stream can end the search
                yield [key for key, _ in versions[at : at + LOAD_MAX]]
            if after is None:
                return

    async def next_look(self, closed: asyncio.Future[None], timeout_seconds: float) -> None:
        """Wait for a look that finds something, until *closed* is done, or for *timeout_seconds*."""
        await asyncio.wait({self._next_look, closed}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)

    async def _run(self, closed: asyncio.Future[None], watch: ExitStack) -> None:
        try:
            with watch:
                while self.followers or monotonic() - self._unused_since < LINGER_SECONDS:
                    await asyncio.wait({closed}, timeout=self._looks_every_seconds)
                    if closed.done():
                        return
                    with suppress(StorageUnavailable):  # logged elsewhere; the next look finds what this one did not
                        await self._look()
        except Exception as error:  # its streams end, and their clients connect again
            logger.opt(exception=error).error("stream failed", states=self._cls.__name__)
        finally:
            self.is_ended = True
            self._wake()

    async def _look(self) -> None:
        """
        Find what has changed since the latest look.

        A key that changes while the look reads it stays marked until the next one, or has the newer state already.
        """
        mark = await self._changes.mark(self._cls)
        if self._changed is None:
            versions = await self._changed_elsewhere()
            keys = [key for key, version in versions.items() if self._versions.get(key) != version]
        else:
            versions, keys = {}, list(self._changed)
        latest = await self._read(keys[:LOAD_MAX]) if keys and self.followers else {}
        # Nothing is marked as found before it is: a look that fails is repeated whole.
        if self._changed is not None:
            self._changed.difference_update(keys)
        self._mark, self._versions = mark, versions
        # Also while the clock is behind, because it was set back: a stream sends the looks after its own position.
        self._position = max(mark.at, self._position + timedelta.resolution)
        if keys:
            self._remember(Look(self._position, keys))
            self._latest = latest
            self._wake()

    async def _changed_elsewhere(self) -> dict[str, str]:
        """Return what any process has changed since the latest look, the oldest change first, and some of what came before."""
        versions: dict[str, str] = {}
        after: str | None = None
        while True:
            page, after = await self._changes.since(self._cls, self._mark, after)
            versions.update(page)
            if after is None:
                return dict(sorted(versions.items(), key=itemgetter(1)))

    def _remember(self, look: Look) -> None:
        self._looks.append(look)
        self._key_count += len(look.keys)
        while self._key_count > KEYS_MAX:
            forgotten = self._looks.popleft()
            self._key_count -= len(forgotten.keys)
            self._begins_at = forgotten.at

    async def _read(self, keys: Sequence[str]) -> dict[str, Shown]:
        states = await self._changes.load(self._cls, keys)
        return {key: Shown(state, self._render(state)) for key, state in states.items()}

    def _render(self, state: Any) -> str | None:
        shown = self._show(state)
        return None if shown is None else orjson.dumps(shown).decode()

    def _wake(self) -> None:
        self._next_look.set_result(None)
        self._next_look = asyncio.get_running_loop().create_future()


class Feed:
    """The changes of the states of *cls* of *service*, which *show* turns into JSON, for the streams of one process."""

    def __init__(self, service: ModuleService, cls: type, show: Callable[[Any], Any]) -> None:
        self._service = service
        self._cls = cls
        self._show = show
        self._starting = asyncio.Lock()
        self._run: FeedRun | None = None

    @asynccontextmanager
    async def follow(self, closed: asyncio.Future[None], looks_every_seconds: float) -> AsyncIterator[FeedRun]:
        """
        Enter to follow the present run, or a new one, which looks every *looks_every_seconds* and ends when *closed* is done.

        Raises:
            StorageUnavailable: The database is unavailable.
        """
        async with self._starting:
            run = self._run
            if run is None or run.is_ended:
                run = FeedRun(self._service.changes, self._cls, self._show, looks_every_seconds)
                await run.start(closed)
                self._run = run
            run.followers += 1
        try:
            yield run
        finally:
            run.leave()
