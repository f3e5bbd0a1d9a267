"""Reads the parameters of a request's path and query."""

from __future__ import annotations

__all__ = ["PARAMETER_CHARACTERS_MAX", "is_percent_encoded", "is_readable", "path_parameters", "read_query"]

import re
from collections.abc import Collection
from functools import partial
from urllib.parse import unquote

from aiohttp import web

from app.web.responses.problems import ProblemError, invalid_input
from bus.errors import SchemaViolation

PARAMETER_CHARACTERS_MAX = 64

# An id or a filter holds no control characters. Halves of surrogate pairs stand for bytes that were not UTF-8.
_READABLE = re.compile("[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DOT_SEGMENTS = frozenset({".", ".."})

_BAD_ENCODING = partial(
    ProblemError, 400, "invalid_path", "The path is not UTF-8 in percent-encoding (RFC 3986)."
)
_DOT_SEGMENT = partial(ProblemError, 400, "invalid_path", "An id in a path cannot be . or ..")


def path_parameters(request: web.Request) -> dict[str, str] | None:
    """
    Return the parameters of the path, or None if one of them cannot be an id.

    Raises:
        ProblemError: 400, the path is not UTF-8 in percent-encoding, or a parameter is a dot segment, which clients and
            proxies remove from a path (RFC 3986, section 5.2.4). Such an id could name another resource.
    """
    if "%" in request.rel_url.raw_path and not is_percent_encoded(request.rel_url.raw_path):
        raise _BAD_ENCODING()
    found = dict(request.match_info)
    if not _DOT_SEGMENTS.isdisjoint(found.values()):
        raise _DOT_SEGMENT()
    for value in found.values():
        if len(value) > PARAMETER_CHARACTERS_MAX or not _READABLE.fullmatch(value):
            return None
    return found


def is_percent_encoded(text: str) -> bool:
    """Return whether each percent sign in *text* begins an encoded octet, and the octets are UTF-8."""
    if _PERCENT.search(text):
        return False
    try:
        unquote(text, errors="strict")
    except UnicodeDecodeError:
        return False
    return True


def is_readable(text: str) -> bool:
    """Return whether *text* is not empty, has no control characters and can be encoded in UTF-8."""
    return _READABLE.fullmatch(text) is not None


def read_query(request: web.Request, known: Collection[str]) -> dict[str, str]:
    """
    Return the parameters of the query, by name.

    Raises:
        ProblemError: 400, a parameter is not among *known*, is given twice, is empty or has control characters.
    """
    found: dict[str, str] = {}
    violations = []
    raw = request.rel_url.raw_query_string
    if "%" in raw and not is_percent_encoded(raw):
        raise ProblemError(400, "invalid_query", "The query is not UTF-8 in percent-encoding (RFC 3986).")
    for name, value in request.query.items():
        pointer = f"/{name[:64].replace('~', '~0').replace('/', '~1')}"
        if name not in known:
            allowed = ", ".join(sorted(known))
            detail = f"is not a parameter of this route, which takes {allowed}" if known else "this route takes no parameters"
            violations.append(SchemaViolation(pointer, detail))
        elif name in found:
            violations.append(SchemaViolation(pointer, "is given twice; give it once"))
        elif not value:
            violations.append(SchemaViolation(pointer, "is empty; give it a value, or leave the parameter out"))
        elif not is_readable(value):
            violations.append(SchemaViolation(pointer, "must not contain control characters"))
        else:
            found[name] = value
    if violations:
        raise invalid_input("invalid_query", "The query has invalid parameters; errors lists each of them.", violations[:20])
    return found
