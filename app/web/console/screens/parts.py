"""What a screen consists of, and what it is made from."""

from __future__ import annotations

__all__ = ["ScreenParts", "Sources"]

from attrs import frozen

from app.web.console.frame import Page, Screen
from app.web.console.live import Live
from app.web.console.rendering import Rendering
from app.web.console.samples import Samples
from app.web.operations.module_api import ModuleApi


@frozen
class ScreenParts:
    """An entry of the navigation with its pages."""

    screen: Screen
    pages: tuple[Page, ...]


@frozen
class Sources:
    """Where the screens take from what they show."""

    api: ModuleApi
    live: Live
    rendering: Rendering
    samples: Samples
    analytics_file: str
    """The DuckDB file into which another process counts."""
