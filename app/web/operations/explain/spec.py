"""The OpenAPI description of an explanation."""

from __future__ import annotations

__all__ = ["EXPLAIN_PATH", "EXPORT_PATH", "description"]

from typing import Any

from app.web.operations.explain.explanation import RECORDS_PATH
from app.web.requests.one_module import MODULE
from app.web.spec.components import Description, operation, query_parameter, ref, response

EXPLAIN_PATH = "/v1/orders/{order_id}/explain"
EXPORT_PATH = "/v1/orders/{order_id}/export"

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_ID: Json = {"type": ["string", "null"]}
_TIME: Json = {"type": "string", "format": "date-time"}
_LIST: Json = {"type": "array", "items": {"type": "object"}}
_EVENT: Json = {
    "type": "object",
    "required": ["event_id", "cause_id", "subject", "module", "at", "data", "delivery", "attempts"],
    "properties": {
        "event_id": _TEXT,
        "cause_id": {**_ID, "description": "The id of the event, request or answer that it follows from; null if that is not known."},
        "parent_id": {**_ID, "description": "The id of the event above it in the tree; null for a request from outside."},
        "subject": _TEXT,
        "module": {**_TEXT, "description": "The module that has published it."},
        "at": _TIME,
        "data": {"type": "object"},
        "delivery": {
            "type": "string",
            "enum": ["local", "published", "pending", "dead"],
            "description": "In the transaction itself; accepted by the bus; not accepted yet; or left to a dead letter.",
        },
        "attempts": {"type": "integer", "minimum": 0, "description": "Deliveries, of a dead letter those that failed."},
    },
}
_TIMER: Json = {
    "type": "object",
    "required": ["module", "name", "subject", "due_at"],
    "properties": {"module": _TEXT, "name": _TEXT, "subject": _TEXT, "due_at": _TIME},
}
_ATTEMPT: Json = {
    "type": "object",
    "required": ["at", "request_id", "outcome", "detail"],
    "properties": {"at": _TIME, "request_id": _TEXT, "outcome": _TEXT, "detail": {"type": "object"}},
}
_EXPLANATION: Json = {
    "type": "object",
    "required": [
        *("order_id", "status", "summary", "waiting_for", "events", "timers", "payment", "reservation", "dead_letters"),
        *("audit", "unreachable"),
    ],
    "properties": {
        "order_id": _TEXT,
        "status": _TEXT,
        "summary": {**_TEXT, "description": "One sentence: where it stands, what it waits for, until when. Times of day are in UTC."},
        "waiting_for": {
            "type": ["object", "null"],
            "required": ["what", "since", "until"],
            "properties": {
                "what": {"type": "string", "enum": ["stock", "payment", "refund", "person"]},
                "since": _TIME,
                "until": {"type": ["string", "null"], "format": "date-time", "description": "When the order is cancelled."},
            },
        },
        "events": {"type": "array", "items": _EVENT, "description": "Causes before effects."},
        "timers": {"type": "array", "items": _TIMER, "description": "What is due later."},
        "payment": {
            "type": ["object", "null"],
            "description": "As `GET /v1/payments/{order_id}`, with the answers of the provider.",
            "properties": {"attempts": {"type": "array", "items": _ATTEMPT}, "calls": {"type": "integer"}},
        },
        "reservation": {"type": ["object", "null"], "properties": {"status": _TEXT, "lines": _LIST}},
        "dead_letters": {"type": "array", "items": ref("schemas", "DeadLetter")},
        "audit": {"type": "array", "items": ref("schemas", "AuditRecord")},
        "unreachable": {"type": "array", "items": _TEXT, "description": "Modules whose process gives no answer."},
        "reasons": {"type": "object", "additionalProperties": _TEXT, "description": "Why, by module."},
        "is_complete": {
            "type": "boolean",
            "description": "False if a module gives no answer, the order is older than the history, or its rows were deleted.",
        },
        "format": {**_TEXT, "description": "In an export only, as `states` and `history`."},
        "states": {"type": "object", "description": "The stored states, by module and class."},
        "history": {"type": "array", "items": {"type": "object"}, "description": "What the modules have decided, by transaction."},
        "order": {"type": "object", "description": "As `GET /v1/orders/{order_id}`."},
    },
}
_OF_ORDERS: dict[str, Json] = {
    EXPLAIN_PATH: {
        "get": operation(
            "explainOrder", EXPLAIN_PATH, "Explain an order: where it stands, and the tree of its events", "operations",
            {200: response("The explanation; what is out of reach is named.", ref("schemas", "Explanation"))}, (400, 404, 503),
        )
    },
    EXPORT_PATH: {
        "get": operation(
            "exportOrder", EXPORT_PATH, "Export an order with its explanation, to be imported on another machine", "operations",
            {200: response("The explanation, with the stored states and the history of the order.", ref("schemas", "Explanation"))},
            (400, 404, 503),
        )
    },
}  # fmt: skip
_OF_THE_PROCESS: dict[str, Json] = {
    RECORDS_PATH: {
        "get": operation(
            "getOrderRecords", RECORDS_PATH, "Show the records of one process about an order, as other processes ask for them",
            "operations", {200: response("By module.", {"type": "object"})}, (400, 404, 503),
            parameters=[
                {**query_parameter(MODULE.name, dict(MODULE.schema)), "description": MODULE.description},
                {**query_parameter("moments", _TEXT), "description": "Times in the timeline of the order, by commas."},
                {**query_parameter("states", {"type": "string", "enum": ["true"]}), "description": "With the stored states."},
                {**query_parameter("events", _TEXT), "description": "Ids of events that are known, by commas."},
            ],
        )
    }
}  # fmt: skip


def description(*, has_orders: bool) -> Description:
    """Return the OpenAPI description of the endpoints that every process has, and with *has_orders* of those for orders."""
    if not has_orders:
        return Description(_OF_THE_PROCESS)
    return Description({**_OF_ORDERS, **_OF_THE_PROCESS}, {"Explanation": _EXPLANATION})
