"""The screens of the console, one file each: what it shows, and its pages."""

from __future__ import annotations

__all__ = ["ScreenParts", "Sources", "build_screens"]

from app.web.console.screens import analytics, dead_letters, now, orders, stock, system
from app.web.console.screens.parts import ScreenParts, Sources

_BUILDERS = (now.build, orders.build, dead_letters.build, stock.build, system.build, analytics.build)


def build_screens(sources: Sources) -> tuple[ScreenParts, ...]:
    """Return all screens, in the order of the navigation."""
    return tuple(build(sources) for build in _BUILDERS)
