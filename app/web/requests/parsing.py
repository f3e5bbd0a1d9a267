"""Reads the parts of a request: its body, its idempotency key, and the parameters of its path and its query."""

from __future__ import annotations

__all__ = [
    "BODY_BYTES_MAX",
    "BODY_SECONDS_MAX",
    "PARAMETER_CHARACTERS_MAX",
    "TRACEPARENT",
    "ask_for_body",
    "idempotency_key",
    "is_percent_encoded",
    "is_readable",
    "parse_body",
    "path_parameters",
    "read_body",
    "read_query",
]

import asyncio
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

from aiohttp import HttpVersion11, hdrs, web

from app.web.problems import ProblemError, invalid_input
from app.web.requests.strict_json import NotAnInteger, NotStrict, loads
from bus.contracts.schemas import explain
from bus.errors import SchemaViolation

BODY_BYTES_MAX = 64 * 1024
BODY_SECONDS_MAX = 10.0
PARAMETER_CHARACTERS_MAX = 64

IDEMPOTENCY_KEY = "Idempotency-Key"
TRACEPARENT = "traceparent"

# The usual spellings are accepted without parsing.
_USUAL_TYPES = frozenset({"application/json", "application/json; charset=utf-8", "application/json;charset=utf-8"})
_JSON_TYPE = re.compile(r'application/json(?:[ \t]*;[ \t]*charset=(?:utf-8|"utf-8"))?', re.ASCII | re.IGNORECASE)
_BARE_KEY = re.compile(r"[!#-~][!-~]{0,254}", re.ASCII)
_QUOTED_KEY = re.compile(r'"((?:[!#-\[\]-~]|\\["\\])+)"', re.ASCII)
# An id or a filter holds no control characters. Halves of surrogate pairs stand for bytes that were not UTF-8.
_READABLE = re.compile("[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DOT_SEGMENTS = frozenset({".", ".."})

# Each error is constructed when it is raised: an exception that is raised twice keeps the frames of the first time.
_TOO_LARGE = partial(
    ProblemError, 413, "body_too_large", f"The body is larger than {BODY_BYTES_MAX} bytes.", closes=True
)
_MISSING = partial(ProblemError, 400, "invalid_json", "The body is empty; this route requires one.")
_ENCODED = partial(
    ProblemError,
    415,
    "unsupported_media_type",
    "The body must have no Content-Encoding.",
    headers={hdrs.ACCEPT_ENCODING: "identity"},
    closes=True,
)
_NOT_JSON = partial(
    ProblemError,
    415,
    "unsupported_media_type",
    "Content-Type must be application/json, in UTF-8.",
    headers={"Accept": "application/json"},
)
_BROKEN = partial(
    ProblemError,
    400,
    "malformed_request",
    "The body is incomplete, or its framing contradicts the headers.",
    closes=True,
)
_SLOW = partial(
    ProblemError, 408, "request_timeout", f"The body did not arrive within {BODY_SECONDS_MAX:g} seconds.", closes=True
)
_BAD_KEY = partial(
    ProblemError,
    400,
    "invalid_idempotency_key",
    "Idempotency-Key must be given once, as 1 to 255 visible ASCII characters, quoted or bare.",
)


_BAD_ENCODING = partial(
    ProblemError, 400, "invalid_path", "The path is not UTF-8 in percent-encoding (RFC 3986)."
)
_DOT_SEGMENT = partial(ProblemError, 400, "invalid_path", "An id in a path cannot be . or ..")


async def read_body(
    request: web.Request, is_valid: Callable[[Any], bool], schema: Mapping[str, Any], *, is_required: bool = True
) -> Any:
    """
    Return the request's JSON body, validated against *schema*.

    *is_valid* is the compiled validator of *schema*. Where the body is not required, an absent one counts as an empty
    object.

    Raises:
        ProblemError: 400 for a body that is not strict JSON or violates the schema, 408, 413 or 415.
    """
    headers = request.headers
    if hdrs.CONTENT_ENCODING in headers:
        raise _ENCODED()
    if not request.body_exists:
        return _missing_body(is_required, is_valid, schema)
    content_type = headers.get(hdrs.CONTENT_TYPE)
    if content_type not in _USUAL_TYPES and not _JSON_TYPE.fullmatch(content_type or ""):
        raise _NOT_JSON()
    body = await _read_bytes(request)
    if not body:
        return _missing_body(is_required, is_valid, schema)
    return parse_body(body, is_valid, schema)


def parse_body(body: bytes, is_valid: Callable[[Any], bool], schema: Mapping[str, Any]) -> Any:
    """
    Return the JSON value of *body*, validated against *schema*.

    Raises:
        ProblemError: 400, it is not strict JSON or violates the schema.
    """
    try:
        value = loads(body)
    except NotStrict as error:
        raise ProblemError(400, "invalid_json", error.detail) from None
    except NotAnInteger as error:
        raise _invalid_body(error.violations) from None
    if not is_valid(value):
        raise _invalid_body(explain(schema, value))
    return value


def _missing_body(is_required: bool, is_valid: Callable[[Any], bool], schema: Mapping[str, Any]) -> Any:
    if is_required:
        raise _MISSING()
    if not is_valid({}):
        raise _invalid_body(explain(schema, {}))
    return {}


def _invalid_body(violations: tuple[SchemaViolation, ...]) -> ProblemError:
    # A fast validator decides and a second one explains; if the second finds no violation, the decision still counts.
    violations = violations or (SchemaViolation("", "does not match the schema"),)
    return invalid_input("invalid_body", "The body does not match the schema of this route; errors lists each violation.", violations)


async def _read_bytes(request: web.Request) -> bytes:
    length = request.content_length
    if length is not None and length > BODY_BYTES_MAX:
        raise _TOO_LARGE()
    await ask_for_body(request)
    try:
        if request.content.is_eof():  # the whole body has arrived: reading does not wait
            body = request.content.read_nowait()
            if len(body) > BODY_BYTES_MAX:
                raise _TOO_LARGE()
            return body
        async with asyncio.timeout(BODY_SECONDS_MAX):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _TOO_LARGE() from None
    except (web.RequestPayloadError, ConnectionError):
        raise _BROKEN() from None
    except TimeoutError:
        raise _SLOW() from None


def idempotency_key(request: web.Request) -> str | None:
    """
    Return the Idempotency-Key without its quotes, or None if the request has none.

    Raises:
        ProblemError: 400, it is not 1 to 255 visible ASCII characters, or is given twice.
    """
    header = request.headers.get(IDEMPOTENCY_KEY)
    if header is None:
        return None
    if len(request.headers.getall(IDEMPOTENCY_KEY)) > 1:
        raise _BAD_KEY()
    if _BARE_KEY.fullmatch(header):
        return header
    quoted = _QUOTED_KEY.fullmatch(header)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else ""
    if not 1 <= len(key) <= 255:
        raise _BAD_KEY()
    return key


async def ask_for_body(request: web.Request) -> None:
    """
    Send ``100 Continue`` to a client that waits for it (RFC 9110, section 10.1.1).

    Call it where the body is read, after everything that could refuse the request without it.
    """
    if hdrs.EXPECT in request.headers and request.version >= HttpVersion11 and not request.content.total_bytes:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the response itself has not begun


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
