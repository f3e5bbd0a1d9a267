"""The OpenAPI description of the overview."""

from __future__ import annotations

__all__ = ["DESCRIPTION", "PATH", "STREAM_PATH"]

from typing import Any

from app.web.operations.overview.overview import OWN_PATH
from app.web.requests.one_module import MODULE
from app.web.spec.components import Description, operation, query_parameter, ref, response

PATH = "/v1/overview"
STREAM_PATH = "/v1/overview/stream"

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_TIME: Json = {"type": "string", "format": "date-time"}
_COUNT: Json = {"type": ["integer", "null"], "minimum": 0}
_NUMBER: Json = {"type": ["number", "null"], "minimum": 0}
_ORDERS: Json = {
    "type": "object",
    "description": "All members are null if the process of orders, or its database, gives no answer.",
    "required": ["by_status", "accepted_per_s", "completed_per_s", "oldest_waiting"],
    "properties": {
        "by_status": {
            "type": ["object", "null"],
            "additionalProperties": {"type": "integer", "minimum": 0},
            "description": "Orders that are not archived; exact up to 10,000 of a status, and above as of the last complete count.",
        },
        "accepted_per_s": {**_NUMBER, "description": "Within the last ten seconds."},
        "completed_per_s": {**_NUMBER, "description": "Orders that were confirmed or cancelled, within the last ten seconds."},
        "oldest_waiting": {
            "type": ["object", "null"],
            "description": "The oldest order that is neither confirmed nor cancelled.",
            "properties": {"order_id": _TEXT, "status": _TEXT, "since": _TIME},
        },
    },
}
_MODULE: Json = {
    "type": "object",
    "required": ["reachable", "outbox_pending", "outbox_oldest_seconds", "lag_seconds", "replicas"],
    "properties": {
        "reachable": {"type": "boolean"},
        "outbox_pending": {**_COUNT, "description": "Events that are due and that the bus has not accepted yet."},
        "outbox_oldest_seconds": _NUMBER,
        "lag_seconds": {
            **_NUMBER,
            "description": "Mean time from an event to its handling, of those handled within the last ten seconds; null if there is none.",
        },
        "replicas": {**_COUNT, "description": "Processes that run the module; null where several may, and their number is not known."},
        "reason": {**_TEXT, "description": "Why it is not reachable."},
    },
}
_GATEWAY: Json = {
    "type": "object",
    "required": ["name", "breakers", "waiting"],
    "properties": {
        "name": {"type": ["string", "null"]},
        "breakers": {
            "type": "object",
            "additionalProperties": {"type": "string", "enum": ["closed", "half_open", "open"]},
            "description": "By operation: charge, refund, look_up.",
        },
        "since": {"type": "object", "additionalProperties": _TIME, "description": "Since when a breaker is not closed."},
        "waiting": {**_COUNT, "description": "Orders that wait for the provider; counted up to 10,000."},
    },
}
_BUS: Json = {
    "type": ["object", "null"],
    "required": ["name", "status"],
    "properties": {
        "name": _TEXT,
        "status": {**_TEXT, "description": "`ok`, or what is wrong."},
        "problems": {"type": "object", "additionalProperties": _TEXT, "description": "Checks of this process that fail, as in `/readyz`."},
    },
}
_ATTENTION: Json = {
    "type": "array",
    "description": "What needs an operator, what wakes one first.",
    "items": {
        "type": "object",
        "required": ["what", "since", "do"],
        "properties": {
            "what": _TEXT,
            "since": _TIME,
            "do": {**_TEXT, "description": "What to do first."},
            "name": {**_TEXT, "description": "The name of the alert."},
            "severity": {"type": "string", "enum": ["page", "ticket"]},
            "guide": {**_TEXT, "description": "The section of the documents with the rest."},
        },
    },
}
_OVERVIEW: Json = {
    "type": "object",
    "required": ["orders", "modules", "gateway", "bus", "databases", "dead_letters", "attention"],
    "properties": {
        "orders": _ORDERS,
        "modules": {"type": "object", "additionalProperties": _MODULE},
        "gateway": _GATEWAY,
        "bus": _BUS,
        "databases": {"type": "object", "additionalProperties": _TEXT, "description": "By module: `ok`, or what is wrong."},
        "dead_letters": {"type": "array", "items": ref("schemas", "DeadLetterGroups/properties/items/items")},
        "attention": _ATTENTION,
    },
}

DESCRIPTION = Description(
    {
        PATH: {
            "get": operation(
                "getOverview", PATH, "Show what all processes do now, and what needs attention", "operations",
                {200: response("The overview; what is out of reach is named.", ref("schemas", "Overview"))}, (400,),
            )
        },
        STREAM_PATH: {
            "get": operation(
                "streamOverview", STREAM_PATH, "Follow the overview, as server-sent events", "operations",
                {
                    200: response(
                        "Events named `overview`: now, and after each change, at most one a second.",
                        {"type": "string", "x-events": {"overview": ref("schemas", "Overview")}}, "text/event-stream",
                    )
                },
                (400, 503),
                parameters=[ref("parameters", "StreamToken")],
            )
        },
        OWN_PATH: {
            "get": operation(
                "getProcessOverview", OWN_PATH, "Show the part of one process, as the other processes ask for it", "operations",
                {200: response("What this process knows of its own modules.", {"type": "object"})}, (400, 404),
                parameters=[{**query_parameter(MODULE.name, dict(MODULE.schema)), "description": MODULE.description}],
            )
        },
    },
    {"Overview": _OVERVIEW},
)  # fmt: skip
"""The OpenAPI description of these endpoints."""
