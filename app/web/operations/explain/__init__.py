"""One order explained: where it stands, and the causal tree of its events over all modules."""

from __future__ import annotations

__all__ = ["Explainer", "OrderRecords", "description", "route_group"]

from app.web.operations.explain.endpoints import route_group
from app.web.operations.explain.explanation import Explainer
from app.web.operations.explain.records import OrderRecords
from app.web.operations.explain.spec import description
