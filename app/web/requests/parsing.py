"""What a request brings: its body, its idempotency key, the parameters of its path and of its query."""

from __future__ import annotations

__all__ = [
    "BODY_BYTES_MAX",
    "BODY_SECONDS_MAX",
    "PARAMETER_CHARACTERS_MAX",
    "idempotency_key",
    "is_readable",
    "page_size",
    "parameters",
    "read_body",
    "read_query",
]

import asyncio
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from aiohttp import hdrs, web

from app.web.problems import ProblemError, invalid
from app.web.requests.strict_json import NotAnInteger, NotStrict, loads
from bus.contracts.registry import explain
from bus.errors import SchemaViolation

BODY_BYTES_MAX = 64 * 1024
BODY_SECONDS_MAX = 10.0
PARAMETER_CHARACTERS_MAX = 64
PAGE_DEFAULT = 50
PAGE_MAX = 200

IDEMPOTENCY_KEY = "Idempotency-Key"

# Met so often that they need no parsing.
_USUAL_TYPES = frozenset({"application/json", "application/json; charset=utf-8", "application/json;charset=utf-8"})
_JSON_TYPE = re.compile(r'application/json(?:[ \t]*;[ \t]*charset=(?:utf-8|"utf-8"))?', re.ASCII | re.IGNORECASE)
_BARE_KEY = re.compile(r"[!#-~][!-~]{0,254}", re.ASCII)
_QUOTED_KEY = re.compile(r'"((?:[!#-\[\]-~]|\\["\\])+)"', re.ASCII)
_PAGE_SIZE = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)
# Control characters have no place in an id or a filter; halves of surrogate pairs are what is left of bytes that were
# no UTF-8.
_READABLE = re.compile("[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+")

# Made anew each time: an exception that is raised twice keeps the frames of the first time.
_TOO_LARGE = partial(ProblemError, 413, "body_too_large", f"The body is over {BODY_BYTES_MAX} bytes.", closes=True)
_MISSING = partial(ProblemError, 400, "invalid_json", "The body is empty; this route needs one.")
_ENCODED = partial(
    ProblemError,
    415,
    "unsupported_media_type",
    "The body must come as it is, without a Content-Encoding.",
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
    ProblemError, 400, "malformed_request", "The body breaks off, or is not framed as its head says.", closes=True
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


async def read_body(
    request: web.Request, fits: Callable[[Any], bool], schema: Mapping[str, Any], *, is_needed: bool = True
) -> Any:
    """
    Return the request's body, which has passed *schema*; an empty object where it may be left out and is.

    *fits* is the fast check for *schema*.

    Raises:
        Refused: 400 for what is not strict JSON or breaks the schema, 408, 413 or 415.
    """
    headers = request.headers
    if hdrs.CONTENT_ENCODING in headers:
        raise _ENCODED()
    if not request.body_exists:
        return _missing_body(is_needed, fits, schema)
    content_type = headers.get(hdrs.CONTENT_TYPE)
    if content_type not in _USUAL_TYPES and not _JSON_TYPE.fullmatch(content_type or ""):
        raise _NOT_JSON()
    body = await _bytes_of(request)
    if not body:
        return _missing_body(is_needed, fits, schema)
    try:
        value = loads(body)
    except NotStrict as error:
        raise ProblemError(400, "invalid_json", error.detail) from None
    except NotAnInteger as error:
        raise _breaks_schema(error.problems) from None
    if not fits(value):
        raise _breaks_schema(explain(schema, value))
    return value


def _missing_body(is_needed: bool, fits: Callable[[Any], bool], schema: Mapping[str, Any]) -> Any:
    if is_needed:
        raise _MISSING()
    if not fits({}):
        raise _breaks_schema(explain(schema, {}))
    return {}


def _breaks_schema(problems: tuple[SchemaViolation, ...]) -> ProblemError:
    # Two validators, one that is fast and one that explains: should they ever differ, the fast one has the word.
    return invalid("invalid_body", "The body breaks its schema.", problems or (SchemaViolation("", "does not fit the schema"),))


async def _bytes_of(request: web.Request) -> bytes:
    length = request.content_length
    if length is not None and length > BODY_BYTES_MAX:
        raise _TOO_LARGE()
    try:
        if request.content.is_eof():  # all of it is here: reading does not wait
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
    Return the Idempotency-Key without its quotes, or None where there is none.

    Raises:
        Refused: It is not 1 to 255 visible ASCII characters, or is given twice.
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


def parameters(request: web.Request) -> dict[str, str] | None:
    """Return the path's parameters, or None where one of them cannot be anybody's id."""
    found = dict(request.match_info)
    for value in found.values():
        if len(value) > PARAMETER_CHARACTERS_MAX or not _READABLE.fullmatch(value):
            return None
    return found


def is_readable(text: str) -> bool:
    """Tell whether *text* is there, without control characters, and can be written in UTF-8."""
    return _READABLE.fullmatch(text) is not None


def read_query(request: web.Request, known: Collection[str]) -> dict[str, str]:
    """
    Return the query's parameters, each given once and readable.

    Raises:
        Refused: One is not *known*, is given twice, or holds control characters.
    """
    found: dict[str, str] = {}
    problems = []
    for name, value in request.query.items():
        pointer = f"/{name[:64].replace('~', '~0').replace('/', '~1')}"
        if name not in known:
            problems.append(SchemaViolation(pointer, "is not a parameter of this route"))
        elif name in found:
            problems.append(SchemaViolation(pointer, "is given twice"))
        elif not is_readable(value):
            problems.append(SchemaViolation(pointer, "must be at least one character, and no control characters"))
        else:
            found[name] = value
    if problems:
        raise invalid("invalid_query", "The query has parameters that this route does not take.", problems[:20])
    return found


def page_size(query: Mapping[str, str]) -> int:
    """
    Return ``limit``, `PAGE_DEFAULT` when it is not given.

    Raises:
        Refused: It is not an integer from 1 to `PAGE_MAX`.
    """
    text = query.get("limit")
    if text is None:
        return PAGE_DEFAULT
    if not _PAGE_SIZE.fullmatch(text) or int(text) > PAGE_MAX:
        problem = SchemaViolation("/limit", f"must be an integer from 1 to {PAGE_MAX}")
        raise invalid("invalid_query", "The page's size is out of range.", [problem])
    return int(text)
