"""Now: the state of the process and of what it depends on."""

from __future__ import annotations

__all__ = ["SCREEN", "build"]

from aiohttp import hdrs, web

from app.web.console.frame import Page, Screen, Visit
from app.web.console.screens.parts import ScreenParts, Sources
from app.web.endpoints.health import OK

SCREEN = Screen("now", "Now", "/console", ("viewer", "shop", "stock", "metrics"))


def build(sources: Sources) -> ScreenParts:
    """Return the screen."""
    health = sources.health

    async def show(visit: Visit) -> web.StreamResponse:
        checks = await health.checks()
        problems = {name: detail for name, detail in checks.items() if detail != OK}
        return visit.page("now.html", checks=checks, problems=problems, ok=OK)

    return ScreenParts(SCREEN, (Page(hdrs.METH_GET, SCREEN.path, show, SCREEN, is_scoped=True),))
