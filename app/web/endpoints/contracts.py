"""Over HTTP: which events are promised, who still needs which version, and the events' own description."""

from __future__ import annotations

__all__ = ["DESCRIBED", "route_group", "shown"]

from typing import Any

import orjson
from aiohttp import hdrs, web

from app.messaging.version_usage import VersionUsage, VersionUsageReport
from app.web.endpoints.module_routes import JSON, respond_json
from app.web.handler import Endpoint, RequestContext
from app.web.problems import ProblemError
from app.web.requests.parsing import read_query
from app.web.route_group import RouteGroup
from app.web.spec.components import Description, operation, parameter, ref, response

_STATUS = "/v1/contracts"
_ASYNCAPI = "/asyncapi.json"
_MODULE = "Whose process is asked, where one address stands for several; one that does not run it answers 404."
_COUNT = {"type": "integer", "minimum": 0}
_CONTRACT = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        *("subject", "event", "version", "said_by", "is_newest", "is_said", "since", "listeners", "published"),
        *("handled", "safe_to_drop", "reasons"),
    ],
    "properties": {
        "subject": {"type": "string"},
        "event": {"type": "string"},
        "version": {"type": "integer", "minimum": 1},
        "said_by": {"type": "string"},
        "is_newest": {"type": "boolean"},
        "is_said": {"type": "boolean", "description": "Newest, or said beside the newest by a migration."},
        "since": {"type": ["string", "null"], "description": "The release that began to say it beside a newer version."},
        "listeners": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["consumer", "pending"],
                "properties": {"consumer": {"type": "string"}, "pending": _COUNT},
            },
        },
        "published": {**_COUNT, "description": "By this process, since it started; both lanes."},
        "handled": {
            "type": "object",
            "description": "By consumer and outcome, in this process, since it started; both lanes.",
            "additionalProperties": {"type": "object", "additionalProperties": _COUNT},
        },
        "safe_to_drop": {"type": "boolean"},
        "reasons": {"type": "array", "items": {"type": "string"}, "description": "Why it is not safe."},
    },
}
_PAGE = {
    "type": "object",
    "required": ["items"],
    "properties": {"items": {"type": "array", "items": ref("schemas", "contract")}},
}


def route_group(overview: VersionUsageReport, asyncapi: dict[str, Any]) -> RouteGroup:
    """Return the routes."""
    document = orjson.dumps(asyncapi)

    async def status(request: web.Request, asked: RequestContext) -> web.Response:
        module = read_query(request, {"module"}).get("module")
        if module is not None and module not in overview.modules:
            raise ProblemError(404, "not_found", "This process does not run that module.")
        return respond_json({"items": [shown(usage) for usage in await overview.usages()]})

    async def describe(request: web.Request, asked: RequestContext) -> web.Response:
        return web.Response(body=document, headers={hdrs.CONTENT_TYPE: JSON})

    operations = (
        Endpoint(hdrs.METH_GET, _STATUS, status),
        Endpoint(hdrs.METH_GET, _ASYNCAPI, describe, is_open=True),
    )
    return RouteGroup(operations, DESCRIBED)


def shown(usage: VersionUsage) -> dict[str, Any]:
    """Return *usage* as the API shows it."""
    return {
        "subject": usage.subject,
        "event": usage.event,
        "version": usage.version,
        "said_by": usage.producer,
        "is_newest": usage.is_newest,
        "is_said": usage.is_said,
        "since": usage.since,
        "listeners": [{"consumer": each.consumer, "pending": each.pending} for each in usage.listeners],
        "published": usage.published,
        "handled": usage.handled,
        "safe_to_drop": usage.is_safe_to_drop,
        "reasons": list(usage.reasons),
    }


DESCRIBED = Description(
    {
        _STATUS: {
            "get": operation(
                "get",
                _STATUS,
                "Who says and who hears which version of which event",
                "events",
                {200: response("Every version that this process's modules say or hear.", _PAGE)},
                (400, 404),
                parameters=[{**parameter("module", {"type": "string"}), "description": _MODULE}],
            )
        },
        _ASYNCAPI: {
            "get": operation(
                "get",
                _ASYNCAPI,
                "The events, described",
                "events",
                {200: response("AsyncAPI 3.0.0.", {"type": "object"})},
                is_open=True,
            )
        },
    },
    {"contract": _CONTRACT},
)
"""The routes, for the API's description."""
