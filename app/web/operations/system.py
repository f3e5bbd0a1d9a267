"""
The endpoint that shows how a process is set up and what it stands on.

It reports the bus with its streams, its consumers and what differs from the expected topology, the scheduled events of
each module, and the configuration without secrets.
"""

from __future__ import annotations

__all__ = ["CACHE_SECONDS", "DESCRIPTION", "System", "route_group"]

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs
from aiohttp import hdrs, web
from attrs.filters import exclude
from loguru import logger

from app import installed_version
from app.messaging.bus_factory import BusRuntime
from app.storage.errors import StorageUnavailable
from app.storage.module_store import ModuleStore
from app.storage.search.timers import COUNTED_MAX, read_timers
from app.web.handler import Endpoint, RequestContext, RouteGroup
from app.web.requests.filters import FilterReader
from app.web.requests.one_module import MODULE, require_module
from app.web.requests.parameters import read_query
from app.web.responses.success import json_response
from app.web.spec.components import Description, operation, query_parameter, ref, response
from bus.port import Clock
from config.settings import Settings
from config.shown import shown

CACHE_SECONDS = 1.0
"""An answer is reused for this long, so that many open pages cost no more than one."""

ANSWER_SECONDS_MAX = 2.0
"""The bus counts as out of reach when it has not answered after this."""

TIMERS_SHOWN = 20

_PATH = "/v1/system"


class System:
    """What a process with *settings* stands on: its *bus*, and the *stores* of its modules by name."""

    def __init__(self, settings: Settings, bus: BusRuntime, stores: Mapping[str, ModuleStore], clock: Clock) -> None:
        self.modules = tuple(stores)
        self._settings = settings
        self._bus = bus
        self._stores = dict(stores)
        self._clock = clock
        self._reading = asyncio.Lock()
        self._report: dict[str, Any] | None = None
        self._expires_at = 0.0

    async def report(self) -> dict[str, Any]:
        """Return the report as JSON; it is up to `CACHE_SECONDS` old."""
        async with self._reading:
            if self._report is None or self._clock.monotonic() >= self._expires_at:
                self._report = await self._read()
                self._expires_at = self._clock.monotonic() + CACHE_SECONDS
            return self._report

    async def _read(self) -> dict[str, Any]:
        return {
            "version": installed_version(),
            "modules": list(self.modules),
            "bus": await self._read_bus(),
            "timers": [await self._read_timers(name, store) for name, store in self._stores.items()],
            "configuration": [attrs.asdict(variable) for variable in shown(self._settings)],
        }

    async def _read_bus(self) -> dict[str, Any]:
        bus = self._bus.bus
        found: dict[str, Any] = {
            "kind": self._settings.bus, "connected": bus.is_connected, "reconnects": int(self._bus.reconnects()),
            "problems": [*bus.problems, *self._bus.stalls()], "streams": None, "consumers": None,
        }  # fmt: skip
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                found["streams"] = [attrs.asdict(stream) for stream in await self._bus.directory.streams()]
                found["consumers"] = [attrs.asdict(consumer, filter=exclude("understood")) for consumer in await self._bus.directory.consumers()]
        except Exception as error:  # whatever the broker's client raises: nothing is known then
            logger.debug("the bus lists no consumers", error=type(error).__name__)
        return found

    @staticmethod
    async def _read_timers(name: str, store: ModuleStore) -> dict[str, Any]:
        try:
            timers = await store.database.read(partial(read_timers, name, TIMERS_SHOWN))
        except StorageUnavailable:
            return {"module": name, "count": None, "first": []}
        first = [
            {"subject": each.subject, "key": each.key, "due_at": each.due_at.isoformat().replace("+00:00", "Z")}
            for each in timers.first
        ]
        return {"module": name, "count": timers.count, "first": first}


def route_group(system: System) -> RouteGroup:
    """Return the endpoint that serves the report of *system*."""
    filters = FilterReader((MODULE,))

    async def get_system(request: web.Request, context: RequestContext) -> web.Response:
        for condition in filters.read(read_query(request, filters.names)):
            require_module(condition.values[0], system.modules)
        return json_response(await system.report())

    return RouteGroup((Endpoint(hdrs.METH_GET, _PATH, get_system, roles=("viewer",)),), DESCRIPTION)


_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}


def _members(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [*properties], "properties": properties}


def _list(description: str, items: Mapping[str, Any], *, is_nullable: bool = False) -> dict[str, Any]:
    return {"type": ["array", "null"] if is_nullable else "array", "description": description, "items": items}


_STREAM = _members(name=_TEXT, messages=_COUNT, bytes=_COUNT, last_sequence=_COUNT, replicas=_COUNT)
_CONSUMER = _members(
    consumer=_TEXT,
    stream={**_TEXT, "description": "Empty where the bus has no streams."},
    subjects={"type": "array", "items": _TEXT},
    pending={**_COUNT, "description": "Messages that the consumer has yet to settle."},
    in_progress={**_COUNT, "description": "Those that are delivered and not settled."},
    redelivered={**_COUNT, "description": "Those that were delivered more than once."},
)
_BUS = _members(
    kind={"enum": ["memory", "nats"]},
    connected={"type": "boolean"},
    reconnects=_COUNT,
    problems=_list("What differs from the expected streams and consumers, or makes no progress.", _TEXT),
    streams=_list("null if the bus does not answer; empty where it has no streams.", _STREAM, is_nullable=True),
    consumers=_list("null if the bus does not answer.", _CONSUMER, is_nullable=True),
)
_TIMERS = _members(
    module=_TEXT,
    count={
        "type": ["integer", "null"],
        "description": f"{COUNTED_MAX} stands for that many or more; null if the database is out of reach.",
    },
    first=_list(
        "Those that are due first.", _members(subject=_TEXT, key=_TEXT, due_at={"type": "string", "format": "date-time"})
    ),
)
_VARIABLE = _members(
    name=_TEXT,
    value={"type": ["string", "null"], "description": "null for a secret, and where nothing is set."},
    is_set={"type": "boolean", "description": "It has another value than the default."},
    is_secret={"type": "boolean"},
    help=_TEXT,
)

DESCRIPTION = Description(
    {
        _PATH: {
            "get": operation(
                "getSystem",
                _PATH,
                "Show the bus, the scheduled events and the configuration of this process",
                "operations",
                {200: response("The report, up to a second old.", ref("schemas", "System"))},
                (400, 404),
                parameters=[{**query_parameter(MODULE.name, dict(MODULE.schema)), "description": MODULE.description}],
            )
        }
    },
    {
        "System": {
            **_members(
                version=_TEXT,
                modules={"type": "array", "items": _TEXT},
                bus=_BUS,
                timers=_list("Events that a module publishes at a later time.", _TIMERS),
                configuration=_list("Every variable of the environment with its value in this process.", _VARIABLE),
            ),
            "description": "How a process is set up, and what it stands on.",
        }
    },
)
"""The OpenAPI description of this endpoint."""
