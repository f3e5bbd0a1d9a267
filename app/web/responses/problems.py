"""
Error responses: every answer that is not a success is a problem document (RFC 9457).

``type`` is always ``about:blank``, so ``title`` is the status's reason phrase. Programs read ``code``, which is stable.
Every ``detail`` is a sentence written for the client; the text of a foreign exception never reaches a body.
"""

from __future__ import annotations

__all__ = ["CONTENT_TYPE", "X_CORRELATION_ID", "ProblemError", "invalid_input", "phrase", "problem_of", "problem_response"]

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import orjson
from aiohttp import hdrs, web
from attrs import field, frozen

from app.web.responses.success import UNCACHED
from bus.errors import SchemaViolation
from modules.routes import Rejection

CONTENT_TYPE = "application/problem+json"
X_CORRELATION_ID = "X-Correlation-ID"


_RENAMED = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}
"""Reason phrases of RFC 9110 that older Python versions spell differently."""


def phrase(status: int) -> str:
    """Return the reason phrase of *status*."""
    return _RENAMED.get(status) or HTTPStatus(status).phrase


@frozen
class ProblemError(Exception):
    """Answer with *status* and a problem document, with *members* added to it and *headers* to the response."""

    status: int
    code: str
    detail: str
    members: Mapping[str, Any] = field(factory=dict)
    headers: Mapping[str, str] = field(factory=dict)
    closes: bool = False
    """Close the connection after the response, because the rest of the request is not read."""


def invalid_input(code: str, detail: str, violations: Iterable[SchemaViolation], status: int = 400) -> ProblemError:
    """Return the problem for an invalid input, with one entry in ``errors`` for each of *violations*."""
    errors = [{"pointer": violation.pointer, "detail": violation.detail} for violation in violations]
    return ProblemError(status, code, detail, {"errors": errors})


def problem_of(rejection: Rejection, headers: Mapping[str, str] = MappingProxyType({})) -> ProblemError:
    """Return the problem that answers *rejection*."""
    pointer, detail = rejection.pointer, rejection.detail
    members = {"errors": [{"pointer": pointer, "detail": detail}]} if pointer else {}
    return ProblemError(rejection.status, rejection.code, detail, members, headers)


def problem_response(problem: ProblemError, path: str, correlation_id: str) -> web.Response:
    """Return *problem* as the response to a request for *path*."""
    body = {
        "type": "about:blank",
        "title": phrase(problem.status),
        "status": problem.status,
        "detail": problem.detail,
        # A path can hold any bytes that the client sent; a URI reference cannot.
        "instance": quote(path, safe="/%:@!$&'()*+,;=~", errors="surrogateescape"),
        "code": problem.code,
        "correlation_id": correlation_id,
        **problem.members,
    }
    response = web.Response(
        status=problem.status,
        body=orjson.dumps(_encodable(body)),
        headers={hdrs.CONTENT_TYPE: CONTENT_TYPE, X_CORRELATION_ID: correlation_id, **UNCACHED, **problem.headers},
    )
    if problem.closes:
        response.force_close()
    return response


def _encodable(value: Any) -> Any:
    """Return *value* with every character replaced that UTF-8 cannot encode."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_encodable(name): _encodable(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value
