"""A group of routes that no module declares: its endpoints and their OpenAPI description."""

from __future__ import annotations

__all__ = ["RouteGroup"]

from attrs import frozen

from app.web.handler import Endpoint
from app.web.spec.components import Description


@frozen
class RouteGroup:
    """Endpoints beside those of the modules, with their OpenAPI description."""

    endpoints: tuple[Endpoint, ...]
    description: Description
