"""The overview: what the whole system does now, and what needs attention."""

from __future__ import annotations

__all__ = ["DESCRIPTION", "Overview", "ProcessStatus", "route_group"]

from app.web.operations.overview.endpoints import DESCRIPTION, route_group
from app.web.operations.overview.overview import Overview
from app.web.operations.overview.process_status import ProcessStatus
