"""The endpoint of the audit: who changed what, from which value to which."""

from __future__ import annotations

__all__ = ["DESCRIPTION", "route_group", "to_json"]

from collections.abc import Sequence
from datetime import UTC
from typing import Any

from aiohttp import hdrs, web

from app.storage.audit import AuditRecord, AuditTrail
from app.web.handler import Endpoint, RequestContext, RouteGroup
from app.web.requests.filters import FilterReader
from app.web.requests.one_module import MODULE, require_module
from app.web.requests.paging import read_page
from app.web.requests.parameters import read_query
from app.web.responses.success import json_response
from app.web.spec.components import Description, operation, page_of, query_parameter, ref, response
from modules.filters import Filter

_PATH = "/v1/audit"
_TEXT = {"type": "string", "minLength": 1, "maxLength": 255}
_MOMENT = {"type": "string", "format": "date-time", "maxLength": 40}
_FILTERS = (
    MODULE,
    Filter("actor", _TEXT, "Changes that this key requested."),
    Filter("action", _TEXT, "Changes by this operation: its id in this document."),
    Filter("target", _TEXT, "Changes of this resource: an order id, a product id, the id of a dead letter."),
    Filter("after", _MOMENT, "Changes at this time or later."),
    Filter("before", _MOMENT, "Changes before this time."),
)
_RECORD = {
    "type": "object",
    "description": "A change that a person or a key requested.",
    "required": ["id", "module", "at", "actor", "action", "target", "from", "to", "correlation_id"],
    "properties": {
        **{name: {"type": "string"} for name in ("id", "module", "actor", "action", "target", "correlation_id")},
        "at": {"type": "string", "format": "date-time"},
        "from": {"description": "What the change replaced; null where there was nothing."},
        "to": {"description": "What it was replaced with; null where nothing is left."},
    },
}


def route_group(trail: AuditTrail) -> RouteGroup:
    """Return the endpoint that lists the records of *trail*."""
    filters = FilterReader(_FILTERS)

    async def list_audit(request: web.Request, context: RequestContext) -> web.Response:
        query = read_query(request, {*filters.names, "limit", "cursor"})
        wanted: dict[str, Any] = {condition.filter.name: condition.values[0] for condition in filters.read(query)}
        require_module(wanted.get(MODULE.name), trail.modules)

        async def fetch(beyond: str | None, limit: int) -> tuple[Sequence[AuditRecord], None]:
            return await trail.list(**wanted, beyond=beyond, limit=limit), None

        return json_response(await read_page(query, _PATH, fetch, lambda record: str(record.id), to_json))

    return RouteGroup((Endpoint(hdrs.METH_GET, _PATH, list_audit, roles=("viewer",)),), DESCRIPTION)


def to_json(record: AuditRecord) -> dict[str, Any]:
    """Return *record* as the API shows it."""
    return {
        "id": record.id,
        "module": record.module,
        "at": record.at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "actor": record.actor,
        "action": record.action,
        "target": record.target,
        "from": record.before,
        "to": record.after,
        "correlation_id": record.correlation_id,
    }


DESCRIPTION = Description(
    {
        _PATH: {
            "get": operation(
                "listAudit",
                _PATH,
                "List who changed what, newest first",
                "operations",
                {200: response("One page.", ref("schemas", "AuditPage"))},
                (400, 404, 503),
                parameters=[
                    *({**query_parameter(each.name, dict(each.schema)), "description": each.description} for each in _FILTERS),
                    ref("parameters", "Limit"),
                    ref("parameters", "Cursor"),
                ],
            )
        }
    },
    {"AuditRecord": _RECORD, "AuditPage": page_of(ref("schemas", "AuditRecord"))},
)
"""The OpenAPI description of this endpoint."""
