"""Endpoints about the events: how each version is used, and the AsyncAPI document."""

from __future__ import annotations

__all__ = ["DESCRIPTION", "route_group", "to_json"]

from typing import Any

import orjson
from aiohttp import hdrs, web

from app.messaging.versions.usage import VersionUsage, VersionUsageReport
from app.web.handler import Endpoint, RequestContext, RouteGroup
from app.web.requests.filters import FilterReader
from app.web.requests.one_module import MODULE, require_module
from app.web.requests.parameters import read_query
from app.web.responses.success import JSON_HEADERS, json_response
from app.web.spec.components import Description, operation, query_parameter, ref, response

_CONTRACTS_PATH = "/v1/contracts"
_ASYNCAPI_PATH = "/asyncapi.json"
_MODULE_HELP = (
    "A process that does not run this module answers 404. The parameter selects a process where one address serves several processes."
)
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
        "said_by": {"type": "string", "description": "The module that publishes the event."},
        "is_newest": {"type": "boolean"},
        "is_said": {"type": "boolean", "description": "Published: the newest version, or one beside it."},
        "retired": {"const": True, "description": "RETIRED_VERSIONS names it; absent otherwise. It is published while a consumer needs it."},
        "since": {
            "type": ["string", "null"],
            "description": "The release that began to publish this version beside a newer one.",
        },
        "listeners": {
            "type": "array",
            "description": "The consumers that subscribe to this version, with their messages that are not settled.",
            "items": {
                "type": "object",
                "required": ["consumer", "pending"],
                "properties": {"consumer": {"type": "string"}, "pending": _COUNT},
            },
        },
        "published": {**_COUNT, "description": "Messages that this process has published since its start; both lanes."},
        "handled": {
            "type": "object",
            "description": "Messages that this process has handled since its start, by consumer and outcome; both lanes.",
            "additionalProperties": {"type": "object", "additionalProperties": _COUNT},
        },
        "safe_to_drop": {"type": "boolean"},
        "reasons": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Why the version cannot be dropped safely.",
        },
    },
}
_CONTRACT_LIST = {
    "type": "object",
    "required": ["items"],
    "properties": {"items": {"type": "array", "items": ref("schemas", "Contract")}},
}


def route_group(report: VersionUsageReport, asyncapi: dict[str, Any]) -> RouteGroup:
    """Return the endpoints that serve *report* and the document *asyncapi*."""
    document = orjson.dumps(asyncapi)
    filters = FilterReader((MODULE,))

    async def list_contracts(request: web.Request, context: RequestContext) -> web.Response:
        for condition in filters.read(read_query(request, filters.names)):
            require_module(condition.values[0], report.modules)
        return json_response({"items": [to_json(usage) for usage in await report.usages()]})

    async def get_asyncapi(request: web.Request, context: RequestContext) -> web.Response:
        return web.Response(body=document, headers=JSON_HEADERS)

    endpoints = (
        Endpoint(hdrs.METH_GET, _CONTRACTS_PATH, list_contracts, roles=("viewer",)),
        Endpoint(hdrs.METH_GET, _ASYNCAPI_PATH, get_asyncapi, is_public=True),
    )
    return RouteGroup(endpoints, DESCRIPTION)


def to_json(usage: VersionUsage) -> dict[str, Any]:
    """Return *usage* as the API shows it."""
    return {
        "subject": usage.subject,
        "event": usage.event,
        "version": usage.version,
        "said_by": usage.producer,
        "is_newest": usage.is_newest,
        "is_said": usage.is_published,
        **({"retired": True} if usage.is_retired else {}),
        "since": usage.since,
        "listeners": [{"consumer": each.consumer, "pending": each.pending} for each in usage.consumers],
        "published": usage.published,
        "handled": usage.handled,
        "safe_to_drop": usage.is_safe_to_drop,
        "reasons": list(usage.reasons),
    }


DESCRIPTION = Description(
    {
        _CONTRACTS_PATH: {
            "get": operation(
                "listContracts",
                _CONTRACTS_PATH,
                "List every version of every event, with its producer and its consumers",
                "events",
                {
                    200: response(
                        "Every version that the modules of this process publish or consume.",
                        ref("schemas", "ContractList"),
                    )
                },
                (400, 404),
                parameters=[{**query_parameter(MODULE.name, dict(MODULE.schema)), "description": _MODULE_HELP}],
            )
        },
        _ASYNCAPI_PATH: {
            "get": operation(
                "getAsyncApi",
                _ASYNCAPI_PATH,
                "Description of the events",
                "events",
                {200: response("AsyncAPI 3.0.0.", {"type": "object"})},
                is_public=True,
            )
        },
    },
    {"Contract": _CONTRACT, "ContractList": _CONTRACT_LIST},
)
"""The OpenAPI description of these endpoints."""
