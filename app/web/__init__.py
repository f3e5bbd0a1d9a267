"""The HTTP side of the house: modules' routes become an aiohttp application that keeps the public contract."""

from __future__ import annotations

__all__ = ["DeadLetterDesk", "Health", "KeptLetter", "Runner", "build"]

from app.web.application import build
from app.web.endpoints.dead_letters import DeadLetterDesk, KeptLetter
from app.web.endpoints.health import Health
from app.web.server import Runner
