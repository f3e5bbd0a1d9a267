"""
Every answer that is not a success: problem details as RFC 9457 has them.

``type`` is always ``about:blank``, so ``title`` is the status's own phrase; what a program should look at is ``code``.
A detail is written by us for the caller's eyes: nothing that an exception says gets into a body.
"""

from __future__ import annotations

__all__ = ["CONTENT_TYPE", "ProblemError", "invalid", "phrase", "respond"]

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import orjson
from aiohttp import hdrs, web
from attrs import field, frozen

from bus.errors import SchemaViolation

CONTENT_TYPE = "application/problem+json"
X_CORRELATION_ID = "X-Correlation-ID"


_RENAMED = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}
"""Phrases of RFC 9110 that not every Python version knows yet."""


def phrase(status: int) -> str:
    """Return the reason phrase of *status*."""
    return _RENAMED.get(status) or HTTPStatus(status).phrase


@frozen
class ProblemError(Exception):
    """Answer with *status* and a problem: *members* are added to it, *headers* to the answer."""

    status: int
    code: str
    detail: str
    members: Mapping[str, Any] = field(factory=dict)
    headers: Mapping[str, str] = field(factory=dict)
    closes: bool = False
    """True where the rest of the request is not worth reading: the connection ends with the answer."""


def invalid(code: str, detail: str, problems: Iterable[SchemaViolation], status: int = 400) -> ProblemError:
    """Return the refusal of an invalid input, with one entry in ``errors`` for each of *problems*."""
    errors = [{"pointer": problem.pointer, "detail": problem.detail} for problem in problems]
    return ProblemError(status, code, detail, {"errors": errors})


def respond(refused: ProblemError, path: str, correlation_id: str) -> web.Response:
    """Return *refused* as the answer to a request for *path*."""
    body = {
        "type": "about:blank",
        "title": phrase(refused.status),
        "status": refused.status,
        "detail": refused.detail,
        # A path may hold whatever bytes the caller sent; a URI reference may not.
        "instance": quote(path, safe="/%:@!$&'()*+,;=~", errors="surrogateescape"),
        "code": refused.code,
        "correlation_id": correlation_id,
        **refused.members,
    }
    response = web.Response(
        status=refused.status,
        body=orjson.dumps(_told(body)),
        headers={hdrs.CONTENT_TYPE: CONTENT_TYPE, X_CORRELATION_ID: correlation_id, **refused.headers},
    )
    if refused.closes:
        response.force_close()
    return response


def _told(value: Any) -> Any:
    """Return *value* with every text fit for UTF-8."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_told(name): _told(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    return value
