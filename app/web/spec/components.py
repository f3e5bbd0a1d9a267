"""The building blocks of the OpenAPI document: the shared components, and functions that describe operations."""

from __future__ import annotations

__all__ = [
    "COMPONENTS",
    "Description",
    "body",
    "operation",
    "page_of",
    "path_parameters",
    "query_parameter",
    "ref",
    "response",
]

import re
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen

from app.web.requests.paging import PAGE_DEFAULT, PAGE_MAX
from app.web.requests.parameters import PARAMETER_CHARACTERS_MAX
from app.web.responses.problems import CONTENT_TYPE, phrase
from app.web.responses.success import JSON

Json = dict[str, Any]


@frozen
class Description:
    """Paths of an OpenAPI document, and the component schemas that they refer to."""

    paths: Mapping[str, Json]
    schemas: Mapping[str, Mapping[str, Any]] = field(factory=dict)


_INPUT_ERROR: Json = {
    "type": "object",
    "description": "One error in the body or the query.",
    "required": ["pointer", "detail"],
    "properties": {
        "pointer": {"type": "string", "description": "JSON Pointer (RFC 6901) to the invalid value."},
        "detail": {"type": "string"},
    },
}
_PROBLEM: Json = {
    "type": "object",
    "description": "Problem details (RFC 9457).",
    "required": ["type", "title", "status", "detail", "instance", "code", "correlation_id"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri-reference"},
        "code": {"type": "string", "description": "Stable identifier of the problem, for programs."},
        "correlation_id": {"type": "string"},
        "errors": {"type": "array", "items": {"$ref": "#/components/schemas/InputError"}},
        "checks": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_HEADERS: Json = {
    "X-Correlation-ID": {
        "description": "The correlation id of the request, or a generated one.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
    "Location": {"description": "Path of the created resource.", "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "Present if this is the stored response to an earlier request with the same Idempotency-Key.",
        "schema": {"type": "string", "const": "true"},
    },
    "Retry-After": {"description": "Seconds to wait before a retry.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "The authentication scheme to use.", "schema": {"type": "string"}},
    "ETag": {
        "description": "Entity tag of the representation; send it as If-Match.",
        "schema": {"type": "string"},
    },
    "Allow": {"description": "The methods of this path.", "schema": {"type": "string"}},
}
_PARAMETERS: Json = {
    "CorrelationId": {
        "name": "X-Correlation-ID",
        "in": "header",
        "description": "Appears in every log line and event that the request causes. An invalid value is replaced.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
    "Traceparent": {
        "name": "traceparent",
        "in": "header",
        "description": "W3C Trace Context. A valid value is continued, an invalid one starts a new trace.",
        "schema": {"type": "string"},
    },
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Quoted or bare. A repeated request with the same key and body gets the stored response and has"
        " no further effect.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
    "IfMatch": {
        "name": "If-Match",
        "in": "header",
        "description": "Entity tags that the resource must have, or `*`: it must exist. 412 otherwise.",
        "schema": {"type": "string"},
        "example": '"8f14e45fceea167a5a36dedd"',
    },
    "IfNoneMatch": {
        "name": "If-None-Match",
        "in": "header",
        "description": "Entity tags that the resource must not have, or `*`: it must not exist.",
        "schema": {"type": "string"},
        "example": "*",
    },
    "LastEventId": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "Id of the last event that the client has, as EventSource sends it.",
        "schema": {"type": "string"},
    },
    "StreamToken": {
        "name": "token",
        "in": "query",
        "description": "A token of `POST /v1/stream-tokens`, in place of a key.",
        "schema": {"type": "string"},
    },
    "Limit": {
        "name": "limit",
        "in": "query",
        "description": "Most items on the page.",
        "schema": {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_DEFAULT},
    },
    "Cursor": {
        "name": "cursor",
        "in": "query",
        "description": "The next_cursor of the previous page; opaque.",
        "schema": {"type": "string"},
    },
}
_PROBLEMS = {
    400: ("invalid_body", "The body is not strict JSON, or the body or a parameter violates its schema."),
    401: ("unauthorized", "The API key is missing or unknown; only where authentication is on."),
    403: ("forbidden", "The role of the API key may not do this, or the request comes from where it must not."),
    404: ("not_found", "The resource does not exist."),
    405: ("method_not_allowed", "The path does not have this method."),
    408: ("request_timeout", "The body did not arrive in time."),
    409: ("below_reserved", "The present state of the resource does not allow it."),
    412: ("precondition_failed", "The resource does not match If-Match or If-None-Match."),
    413: ("body_too_large", "The body is larger than 64 KiB."),
    415: ("unsupported_media_type", "The body is not application/json in UTF-8, or has a Content-Encoding."),
    422: ("idempotency_key_reused", "The Idempotency-Key was used before, with another body, or a value is not possible."),
    500: ("internal_error", "An internal error occurred."),
    503: ("overloaded", "Not possible now; nothing was stored, unless `code` is `outcome_unknown`."),
}
"""By status: the code in the example, and the description."""

_MORE_HEADERS = {401: "WWW-Authenticate", 405: "Allow", 503: "Retry-After"}


def ref(kind: str, name: str) -> Json:
    """Return the reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def page_of(item: Json) -> Json:
    """Return the schema of one page of a list whose items have the schema *item*."""
    return {
        "type": "object",
        "description": "One page of a list.",
        "required": ["items", "next_cursor"],
        "properties": {
            "items": {"type": "array", "items": item},
            "next_cursor": {"type": ["string", "null"], "description": "Cursor of the next page; null on the last."},
        },
    }


def _headers(*names: str) -> Json:
    return {name: ref("headers", name) for name in ("X-Correlation-ID", *names)}


def _problem(status: int) -> Json:
    code, detail = _PROBLEMS.get(status, (None, phrase(status)))
    content: Json = {"schema": ref("schemas", "Problem")}
    if code is not None:
        content["example"] = _example(status, code, detail)
    return {
        "description": detail,
        "headers": _headers(*([_MORE_HEADERS[status]] if status in _MORE_HEADERS else [])),
        "content": {CONTENT_TYPE: content},
    }


def _example(status: int, code: str, detail: str) -> Json:
    example: Json = {
        "type": "about:blank",
        "title": phrase(status),
        "status": status,
        "detail": detail,
        "instance": "/v1/orders",
        "code": code,
        "correlation_id": "0192f0c1-2b3c-7d4e-8f50-617283940a1b",
    }
    if status == 400:
        example["errors"] = [{"pointer": "/items/0/quantity", "detail": "must be at least 1; it is 0"}]
    return example


def _response_name(status: int) -> str:
    """Return the name of a problem's response component: ``NotFound``."""
    return phrase(status).replace(" ", "")


COMPONENTS: Json = {
    "schemas": {"Problem": _PROBLEM, "InputError": _INPUT_ERROR},
    "headers": _HEADERS,
    "parameters": _PARAMETERS,
    "responses": {
        **{_response_name(status): _problem(status) for status in _PROBLEMS},
        "Problem": {
            "description": "Any other problem.",
            "headers": _headers(),
            "content": {CONTENT_TYPE: {"schema": ref("schemas", "Problem")}},
        },
    },
    "securitySchemes": {"ApiKey": {"type": "http", "scheme": "bearer", "description": "An API key."}},
}
"""The components of every document; the schemas of the modules are added to them."""


def query_parameter(name: str, schema: Mapping[str, Any]) -> Json:
    """Return the description of a query parameter."""
    return {"name": name, "in": "query", "schema": dict(schema)}


def path_parameters(path: str) -> list[Json]:
    """Return the descriptions of the parameters in a path template."""
    schema = {"type": "string", "minLength": 1, "maxLength": PARAMETER_CHARACTERS_MAX}
    return [
        {"name": name, "in": "path", "required": True, "schema": dict(schema)}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def body(schema: Mapping[str, Any], *, is_required: bool = True) -> Json:
    """Return the description of a request body."""
    return {"required": is_required, "content": {JSON: {"schema": dict(schema)}}}


def response(
    description: str,
    schema: Mapping[str, Any] | None = None,
    media_type: str = JSON,
    headers: Iterable[str] = (),
) -> Json:
    """Return the description of a successful response; without a schema it has no body."""
    found: Json = {"description": description, "headers": _headers(*headers)}
    if schema is not None:
        found["content"] = {media_type: {"schema": dict(schema)}}
    return found


def operation(
    name: str,
    path: str,
    summary: str,
    tag: str,
    responses: Mapping[int, Json],
    problems: Iterable[int] = (),
    *,
    parameters: Iterable[Json] = (),
    request_body: Json | None = None,
    is_public: bool = False,
) -> Json:
    """
    Return the description of one operation: *name* is its id, *responses* are its successes by status.

    *problems* are the statuses of its own problems. 401 and 403 are added unless the operation *is_public*; 500
    and ``default`` are always added.
    """
    statuses = sorted({*problems, 500, *(() if is_public else (401, 403))})
    found: Json = {
        "operationId": name,
        "summary": summary,
        "tags": [tag],
        "parameters": [*path_parameters(path), *parameters, ref("parameters", "CorrelationId")],
        "responses": {
            **{str(status): described for status, described in responses.items()},
            **{
                str(status): ref("responses", _response_name(status)) if status in _PROBLEMS else _problem(status)
                for status in statuses
                if status not in responses
            },
            "default": ref("responses", "Problem"),
        },
    }
    if request_body is not None:
        found["requestBody"] = request_body
    if is_public:
        found["security"] = []
    return found
