"""Routes that come in one piece: what answers them, and their description."""

from __future__ import annotations

__all__ = ["RouteGroup"]

from attrs import frozen

from app.web.handler import Endpoint
from app.web.spec.components import Description


@frozen
class RouteGroup:
    """Operations beside those of the modules."""

    operations: tuple[Endpoint, ...]
    described: Description
