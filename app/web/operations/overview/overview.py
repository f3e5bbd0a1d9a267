"""Put the parts of all processes together to one overview, and share one computation between all who watch it."""

from __future__ import annotations

__all__ = ["OWN_PATH", "Overview"]

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from time import monotonic
from typing import Any

from aiohttp import web

from app.storage.errors import StorageUnavailable
from app.web.operations.module_api import ModuleApi, ProcessAnswer
from app.web.operations.overview.process_status import ORDER_MEMBERS, ORDERS, ProcessStatus
from bus.port import Clock
from bus.tasks import cancel_tasks
from config.api_keys import ApiKey
from modules.values import rfc3339

OWN_PATH = "/v1/overview/process"
"""Where each process has its part."""

INTERVAL_SECONDS = 1.0
"""Between two computations for those who watch."""

SHARED_SECONDS = 0.25
"""A request gets an overview that was computed for another one, if it is not older."""

WATCHED_SECONDS = 60.0
"""For how long after a request the counts of orders are kept up to date."""

PRINCIPAL = ApiKey("overview", "viewer")
"""Who asks the other processes: the overview is computed once for all who may read it."""

_ORDERS_UNKNOWN = dict.fromkeys(ORDER_MEMBERS)
_GATEWAY_UNKNOWN: dict[str, Any] = {"name": None, "breakers": {}, "since": {}}
_MODULE_UNKNOWN = dict.fromkeys(("outbox_pending", "outbox_oldest_seconds", "lag_seconds", "replicas"))


class Overview:
    """
    The overview of the whole system, from *status* of this process and from the other processes, which *api* asks.

    It is computed when it is asked for, and once a second while it is watched; once for all who do.
    """

    def __init__(self, status: ProcessStatus, api: ModuleApi, clock: Clock) -> None:
        self.status = status
        self._api = api
        self._clock = clock
        self._running: asyncio.Task[dict[str, Any]] | None = None
        self._latest: tuple[float, dict[str, Any]] = (-SHARED_SECONDS, {})
        self._asked_at = -WATCHED_SECONDS
        self._watchers: set[asyncio.Event] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._unreachable_since: dict[str, datetime] = {}
        self._sampling: asyncio.Task[None] | None = None
        self.computations = 0

    def attach(self, app: web.Application) -> None:
        """Run while *app* does."""

        async def start(app: web.Application) -> None:
            self._sampling = asyncio.create_task(self._sample(), name="overview")

        async def stop(app: web.Application) -> None:
            tasks: list[asyncio.Task[Any]] = [task for task in (self._sampling, self._ticking, self._running) if task is not None]
            await cancel_tasks(tasks)

        app.on_startup.append(start)
        app.on_cleanup.append(stop)

    async def read(self) -> dict[str, Any]:
        """Return the present overview."""
        self._asked_at = monotonic()
        made_at, latest = self._latest
        if latest and monotonic() - made_at < SHARED_SECONDS:
            return latest
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._compute())
        return await asyncio.shield(self._running)

    async def watch(self, closed: asyncio.Future[None], is_open: Callable[[], bool]) -> AsyncIterator[dict[str, Any]]:
        """
        Yield the overview now and after each change, at most once a second, until *closed* is done.

        *is_open* is asked after each computation: False if nothing is wanted any more, as when a client has gone.
        """
        changed = asyncio.Event()
        self._watchers.add(changed)
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.create_task(self._tick(), name="overview of the watchers")
        try:
            yield (latest := await self.read())
            while is_open() and not closed.done():
                waiting = asyncio.ensure_future(changed.wait())
                either: set[asyncio.Future[Any]] = {waiting, closed}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                changed.clear()
                if self._latest[1] != latest and is_open() and not closed.done():
                    yield (latest := self._latest[1])
        finally:
            self._watchers.discard(changed)

    async def _tick(self) -> None:
        """Compute once a second for as long as there are watchers."""
        while self._watchers:
            await asyncio.sleep(INTERVAL_SECONDS)
            if self._watchers:
                await self.read()
                for changed in self._watchers:
                    changed.set()

    async def _sample(self) -> None:
        with suppress(StorageUnavailable):
            await self.status.prepare()
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            self.status.step()
            if monotonic() - self._asked_at < WATCHED_SECONDS:
                with suppress(StorageUnavailable):
                    await self.status.recount()

    async def _compute(self) -> dict[str, Any]:
        self.computations += 1
        answers = await self._api.ask_all("GET", OWN_PATH, principal=PRINCIPAL, names_module=True)
        found = self._merged(answers)
        self._latest = (monotonic(), found)
        return found

    def _merged(self, answers: Sequence[ProcessAnswer]) -> dict[str, Any]:
        parts: list[dict[str, Any]] = []
        modules: dict[str, Any] = {}
        unreachable: dict[str, str] = {}
        for each in answers:
            if each.answer is not None and each.answer.is_success:
                parts.append(each.answer.body)
                continue
            reason = each.unreachable.reason if each.unreachable is not None else "its answer is an error"
            unreachable |= dict.fromkeys(each.modules, reason)
        now = self._clock.now()
        self._unreachable_since = {name: self._unreachable_since.get(name, now) for name in unreachable}
        for part in parts:
            modules |= part["modules"]
        for name, reason in unreachable.items():
            modules[name] = {"reachable": False, **_MODULE_UNKNOWN, "reason": reason}
        orders = next((part[ORDERS] for part in parts if ORDERS in part), _ORDERS_UNKNOWN)
        gateway: dict[str, Any] = next((part["gateway"] for part in parts if "gateway" in part), _GATEWAY_UNKNOWN)
        return {
            "orders": {name: value for name, value in orders.items() if name != "waiting_for_payment"},
            "modules": {name: modules[name] for name in self._api.modules if name in modules},
            "gateway": {**gateway, "waiting": orders["waiting_for_payment"]},
            "bus": parts[0]["bus"] if parts else None,
            "databases": {name: status for part in parts for name, status in part["databases"].items()},
            "dead_letters": sorted(_distinct(part["dead_letters"] or () for part in parts), key=lambda group: -group["count"]),
            "attention": [*self._unreachable(unreachable), *_distinct(part["attention"] for part in parts)],
        }

    def _unreachable(self, unreachable: dict[str, str]) -> list[dict[str, Any]]:
        return [
            {
                "what": f"The process of {name} gives no answer: {reason}.",
                "since": rfc3339(self._unreachable_since[name]),
                "do": "See whether it runs, and check MODULE_URLS and MODULE_KEY_FILE.",
                "name": "ModuleUnreachable",
                "severity": "page",
                "guide": "howto/deploy.html#processes-ask-each-other",
            }
            for name, reason in unreachable.items()
        ]


def _distinct(lists: Iterable[Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for each in (item for items in lists for item in items):
        if each not in found:
            found.append(each)
    return found
