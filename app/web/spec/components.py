"""The words that the API's description is made of: parameters, answers and problems, each said once."""

from __future__ import annotations

__all__ = ["COMPONENTS", "Description", "body", "operation", "parameter", "path_parameters", "ref", "response"]

import re
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen

from app.web.problems import CONTENT_TYPE, phrase
from app.web.requests.parsing import PAGE_DEFAULT, PAGE_MAX, PARAMETER_CHARACTERS_MAX

Json = dict[str, Any]


@frozen
class Description:
    """Paths of an OpenAPI document, and the schemas that they refer to."""

    paths: Mapping[str, Json]
    schemas: Mapping[str, Mapping[str, Any]] = field(factory=dict)


_ERROR: Json = {
    "type": "object",
    "required": ["pointer", "detail"],
    "properties": {
        "pointer": {"type": "string", "description": "JSON Pointer (RFC 6901) to what is wrong."},
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
        "code": {"type": "string", "description": "Stable; for programs."},
        "correlation_id": {"type": "string"},
        "errors": {"type": "array", "items": _ERROR},
        "checks": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_HEADERS: Json = {
    "X-Correlation-ID": {
        "description": "The caller's, or a fresh one.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
    "Location": {"description": "Where what was made is to be found.", "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "There when the answer is the one that this Idempotency-Key got before.",
        "schema": {"type": "string", "const": "true"},
    },
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "How to bring a key.", "schema": {"type": "string"}},
    "Allow": {"description": "The methods of this path.", "schema": {"type": "string"}},
}
_PARAMETERS: Json = {
    "correlation": {
        "name": "X-Correlation-ID",
        "in": "header",
        "description": "Goes into every log line and event that the request causes; anything else is replaced.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
    "traceparent": {
        "name": "traceparent",
        "in": "header",
        "description": "W3C Trace Context. A valid one is continued, an invalid one starts a new trace.",
        "schema": {"type": "string"},
    },
    "idempotency": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Quoted or bare. The same key with the same body gets the same answer and does nothing twice.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
    "limit": {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": PAGE_DEFAULT},
    },
    "cursor": {
        "name": "cursor",
        "in": "query",
        "description": "The next_cursor of the page before; opaque.",
        "schema": {"type": "string"},
    },
}
_REFUSALS = {
    400: ("invalid_body", "Not strict JSON, or not what the schema or the parameters say."),
    401: ("unauthorized", "No API key, or none of ours; only where keys are on."),
    404: ("not_found", "There is nothing here."),
    405: ("method_not_allowed", "Not a method of this path."),
    408: ("request_timeout", "The body did not arrive in time."),
    409: ("below_reserved", "Not as things stand."),
    413: ("body_too_large", "The body is over 64 KiB."),
    415: ("unsupported_media_type", "Not application/json in UTF-8, or with a Content-Encoding."),
    422: ("idempotency_key_reused", "The Idempotency-Key was used before, for another body."),
    500: ("internal_error", "Something went wrong on our side."),
    503: ("overloaded", "Not now; nothing was stored, unless `code` is `outcome_unknown`."),
}
"""By status: a code for an example, and what it means."""

_MORE_HEADERS = {401: "WWW-Authenticate", 405: "Allow", 503: "Retry-After"}


def ref(kind: str, name: str) -> Json:
    """Return the reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def _headers(*names: str) -> Json:
    return {name: ref("headers", name) for name in ("X-Correlation-ID", *names)}


def _problem(status: int) -> Json:
    code, detail = _REFUSALS.get(status, (None, phrase(status)))
    content: Json = {"schema": ref("schemas", "problem")}
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
        example["errors"] = [{"pointer": "/items/0/quantity", "detail": "0 is less than the minimum of 1"}]
    return example


COMPONENTS: Json = {
    "schemas": {"problem": _PROBLEM},
    "headers": _HEADERS,
    "parameters": _PARAMETERS,
    "responses": {
        **{f"problem_{status}": _problem(status) for status in _REFUSALS},
        "problem": {
            "description": "Any other problem.",
            "headers": _headers(),
            "content": {CONTENT_TYPE: {"schema": ref("schemas", "problem")}},
        },
    },
    "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key."}},
}
"""What every document has, before the modules add their schemas."""


def parameter(name: str, schema: Mapping[str, Any]) -> Json:
    """Return the description of a query parameter."""
    return {"name": name, "in": "query", "schema": dict(schema)}


def path_parameters(path: str) -> list[Json]:
    """Return the descriptions of the parameters in a path template."""
    schema = {"type": "string", "minLength": 1, "maxLength": PARAMETER_CHARACTERS_MAX}
    return [
        {"name": name, "in": "path", "required": True, "schema": dict(schema)}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def body(schema: Mapping[str, Any], *, is_needed: bool = True) -> Json:
    """Return the description of a body."""
    return {"required": is_needed, "content": {"application/json": {"schema": dict(schema)}}}


def response(
    description: str,
    schema: Mapping[str, Any] | None = None,
    media: str = "application/json",
    headers: Iterable[str] = (),
) -> Json:
    """Return the description of a success; without a schema there is no body."""
    found: Json = {"description": description, "headers": _headers(*headers)}
    if schema is not None:
        found["content"] = {media: {"schema": dict(schema)}}
    return found


def operation(
    method: str,
    path: str,
    summary: str,
    tag: str,
    answers: Mapping[int, Json],
    problems: Iterable[int] = (),
    *,
    parameters: Iterable[Json] = (),
    request_body: Json | None = None,
    is_open: bool = False,
) -> Json:
    """
    Return the description of one method on one path, with every problem that it can answer.

    401 is added unless *is_open*; 500 and whatever else may happen to any request are added always.
    """
    statuses = sorted({*problems, 500, *(() if is_open else (401,))})
    found: Json = {
        "operationId": re.sub(r"[^a-z0-9]+", "_", f"{method} {path}".lower()).strip("_"),
        "summary": summary,
        "tags": [tag],
        "parameters": [*path_parameters(path), *parameters, ref("parameters", "correlation")],
        "responses": {
            **{str(status): said for status, said in answers.items()},
            **{
                str(status): ref("responses", f"problem_{status}") if status in _REFUSALS else _problem(status)
                for status in statuses
                if status not in answers
            },
            "default": ref("responses", "problem"),
        },
    }
    if request_body is not None:
        found["requestBody"] = request_body
    if is_open:
        found["security"] = []
    return found
