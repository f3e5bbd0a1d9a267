"""Whether the process lives, whether it can work, and whether all that it needs answers."""

from __future__ import annotations

__all__ = ["BUS", "CHECK_SECONDS_MAX", "DATABASE", "OK", "TOPOLOGY", "Health", "operations"]

import asyncio
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from aiohttp import hdrs, web
from loguru import logger

from app.web.endpoints.module_routes import respond_json
from app.web.handler import Endpoint, RequestContext
from app.web.problems import ProblemError

OK = "ok"
BUS = "bus"
DATABASE = "database"
TOPOLOGY = "topology"
CHECK_SECONDS_MAX = 2.0
"""What has not answered by then counts as out of reach."""


class Health(Protocol):
    """How a running application is."""

    @property
    def phase(self) -> Literal["starting", "ready", "draining"]:
        """Where it is in its life."""

    async def checks(self) -> Mapping[str, str]:
        """
        Ask each dependency how it is: `OK`, or one word such as ``unavailable``.

        `BUS` is the bus; `DATABASE`, alone or before a colon and a module's name, is a database. `TOPOLOGY` is what the
        broker holds for us: what it says instead of `OK` is for a person to read and to put right. Any other name is
        something that one can work without for a while.
        """


def operations(health: Health) -> tuple[Endpoint, ...]:
    """Return ``/livez``, ``/readyz`` and ``/health``, which nobody needs a key for."""

    async def livez(request: web.Request, asked: RequestContext) -> web.Response:
        return respond_json({"status": OK})

    async def readyz(request: web.Request, asked: RequestContext) -> web.Response:
        checks = await _checks(health)
        if health.phase != "ready" or not _are_well(checks, lambda name: _is_database(name) or name == TOPOLOGY):
            raise _not_well(health, checks, "This process takes no requests now.")
        return _well(health, checks)

    async def whole(request: web.Request, asked: RequestContext) -> web.Response:
        checks = await _checks(health)
        if not _are_well(checks, lambda name: _is_database(name) or name == BUS):
            raise _not_well(health, checks, "The bus or the database does not answer.")
        return _well(health, checks)

    found = {"/livez": livez, "/readyz": readyz, "/health": whole}
    return tuple(Endpoint(hdrs.METH_GET, path, handle, is_open=True, is_probe=True) for path, handle in found.items())


async def _checks(health: Health) -> dict[str, str]:
    """Return what each check says; nothing where they fail, or take too long."""
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            return dict(await health.checks())
    except Exception as error:  # a check that fails is an answer too: the worst one
        logger.debug("checks failed", error=type(error).__name__)
        return {}


def _are_well(checks: Mapping[str, str], matters: Callable[[str], bool]) -> bool:
    return bool(checks) and all(word == OK for name, word in checks.items() if matters(name))


def _is_database(name: str) -> bool:
    return name == DATABASE or name.startswith(f"{DATABASE}:")


def _well(health: Health, checks: Mapping[str, str]) -> web.Response:
    is_all_well = health.phase == "ready" and all(word == OK for word in checks.values())
    return respond_json({"status": "ready" if is_all_well else "degraded", "checks": checks})


def _not_well(health: Health, checks: Mapping[str, str], detail: str) -> ProblemError:
    # A problem's own "status" is the number, so the word is its code.
    code = "unavailable" if health.phase == "ready" else health.phase
    return ProblemError(503, code, detail, {"checks": checks}, {hdrs.RETRY_AFTER: "1"})
