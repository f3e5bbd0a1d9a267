"""The HTTP side of the house: modules' routes become an aiohttp application that keeps the public contract."""

from __future__ import annotations

__all__ = ["DeadLetterService", "Health", "Runner", "StoredDeadLetter", "build"]

from app.messaging.dead_letters import StoredDeadLetter
from app.web.application import build
from app.web.endpoints.dead_letters import DeadLetterService
from app.web.endpoints.health import Health
from app.web.server import Runner
