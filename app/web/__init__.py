"""The HTTP interface: an aiohttp application made of the routes of the running modules."""

from __future__ import annotations

__all__ = ["Authenticator", "DeadLetterService", "Gate", "Health", "HostRule", "Runner", "StoredDeadLetter", "build_application"]

from app.messaging.dead_letters import StoredDeadLetter
from app.web.access.authentication import Authenticator
from app.web.access.gate import Gate, HostRule
from app.web.application import build_application
from app.web.endpoints.dead_letters import DeadLetterService
from app.web.endpoints.health import Health
from app.web.server import Runner
