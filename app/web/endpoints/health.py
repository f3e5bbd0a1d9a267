"""Endpoints for probes: liveness, readiness and health."""

from __future__ import annotations

__all__ = ["BUS", "CHECK_SECONDS_MAX", "CLOCK", "DATABASE", "OK", "RETIRED", "TOPOLOGY", "WORK", "Health", "ReadinessMetrics", "endpoints"]

import asyncio
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from aiohttp import hdrs, web
from loguru import logger

from app.telemetry.metrics import Metrics
from app.web.handler import Endpoint, RequestContext
from app.web.responses.problems import ProblemError
from app.web.responses.success import json_response

OK = "ok"
BUS = "bus"
DATABASE = "database"
RETIRED = "retired_versions"
TOPOLOGY = "topology"
CLOCK = "clock"
WORK = "work"
CHECK_SECONDS_MAX = 2.0
"""Checks that take longer count as failed."""


class Health(Protocol):
    """The state of a running application and of its dependencies."""

    @property
    def phase(self) -> Literal["starting", "ready", "draining"]:
        """The phase of its life cycle."""

    async def checks(self) -> Mapping[str, str]:
        """
        Check every dependency and return the results by name: `OK`, or one word such as ``unavailable``.

        `BUS` is the bus. `DATABASE`, alone or followed by a colon and a module's name, is a database. `TOPOLOGY`
        compares the broker's streams and consumers with the expected ones; a result other than `OK` is a description
        for the operator. `CLOCK` is there after a jump of the clock, and describes it; `WORK` is there
        while work waits and makes no progress; `RETIRED` while a consumer depends on a retired version of an event. The process
        can work for a while without any other dependency.
        """


def endpoints(health: Health) -> tuple[Endpoint, ...]:
    """Return ``/livez``, ``/readyz`` and ``/health``. None of them requires an API key."""

    async def livez(request: web.Request, context: RequestContext) -> web.Response:
        return json_response({"status": OK})

    async def readyz(request: web.Request, context: RequestContext) -> web.Response:
        checks = await _run_checks(health)
        if not _is_ready(health, checks):
            raise _unavailable(health, checks, "This process accepts no requests now.")
        return _available(health, checks)

    async def whole(request: web.Request, context: RequestContext) -> web.Response:
        checks = await _run_checks(health)
        if not _are_ok(checks, lambda name: _is_database(name) or name == BUS):
            raise _unavailable(health, checks, "The bus or a database is unavailable.")
        return _available(health, checks)

    handlers = {"/livez": livez, "/readyz": readyz, "/health": whole}
    return tuple(
        Endpoint(hdrs.METH_GET, path, handle, is_public=True, is_503_expected=True) for path, handle in handlers.items()
    )


class ReadinessMetrics:
    """Shows in *metrics* what ``/readyz`` would answer for *health*."""

    def __init__(self, health: Health, metrics: Metrics) -> None:
        self._health = health
        self._metrics = metrics
        self._names: set[str] = set()
        metrics.ready.set(0)

    async def sample(self) -> None:
        """Run the checks once; each that was found before and is not among them now is in order again."""
        checks = await _run_checks(self._health)
        self._metrics.ready.set(float(_is_ready(self._health, checks)))
        self._names |= checks.keys()
        for name in self._names:
            self._metrics.health_check_failed.labels(name).set(float(checks.get(name, OK) != OK))


def _is_ready(health: Health, checks: Mapping[str, str]) -> bool:
    return health.phase == "ready" and _are_ok(checks, lambda name: _is_database(name) or name == TOPOLOGY)


async def _run_checks(health: Health) -> dict[str, str]:
    """Return the result of each check; an empty dict if they fail or take longer than `CHECK_SECONDS_MAX`."""
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            return dict(await health.checks())
    except Exception as error:  # the probe must answer whatever a check raises; no result counts as unavailable
        logger.debug("checks failed", error=type(error).__name__)
        return {}


def _are_ok(checks: Mapping[str, str], is_required: Callable[[str], bool]) -> bool:
    return bool(checks) and all(result == OK for name, result in checks.items() if is_required(name))


def _is_database(name: str) -> bool:
    return name == DATABASE or name.startswith(f"{DATABASE}:")


def _available(health: Health, checks: Mapping[str, str]) -> web.Response:
    is_everything_ok = health.phase == "ready" and all(result == OK for result in checks.values())
    return json_response({"status": "ready" if is_everything_ok else "degraded", "checks": checks})


def _unavailable(health: Health, checks: Mapping[str, str], detail: str) -> ProblemError:
    # A problem's own "status" is the HTTP status, so the phase is its code.
    code = "unavailable" if health.phase == "ready" else health.phase
    return ProblemError(503, code, detail, {"checks": checks}, {hdrs.RETRY_AFTER: "1"})
