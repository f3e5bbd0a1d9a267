"""Read ``If-Match`` and ``If-None-Match`` (RFC 9110, section 13.1)."""

from __future__ import annotations

__all__ = ["read_precondition"]

import re

from aiohttp import hdrs, web

from app.web.responses.problems import ProblemError
from modules.values import UNCONDITIONAL, Precondition

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAGS = re.compile(rf"[ \t]*(?:,[ \t]*)*{_TAG}(?:[ \t]*,(?:[ \t]*{_TAG})?)*[ \t]*")
_TAGS_MAX = 100


def read_precondition(request: web.Request) -> Precondition:
    """
    Return the precondition of *request*.

    Raises:
        ProblemError: 400, a header is neither ``*`` nor a list of entity tags in quotes.
    """
    headers = request.headers
    if hdrs.IF_MATCH not in headers and hdrs.IF_NONE_MATCH not in headers:
        return UNCONDITIONAL
    return Precondition(_tags(request, hdrs.IF_MATCH), _tags(request, hdrs.IF_NONE_MATCH))


def _tags(request: web.Request, name: str) -> tuple[str, ...] | None:
    if name not in request.headers:
        return None
    value = ", ".join(request.headers.getall(name)).strip(" \t")
    if value == "*":
        return ("*",)
    tags = re.findall(_TAG, value) if _TAGS.fullmatch(value) else []
    if not 1 <= len(tags) <= _TAGS_MAX:
        detail = f'{name} must be * or entity tags in quotes, as in ETag: {name}: "0a1b2c".'
        raise ProblemError(400, "invalid_precondition", detail)
    return tuple(tags)
