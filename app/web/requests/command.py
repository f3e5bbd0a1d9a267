"""
Reads what a command carries: its JSON body and its idempotency key.

A body is strict JSON: only what every reader understands in the same way (RFC 8259). orjson itself rejects text that is
not JSON in UTF-8: NaN, a byte order mark, lone surrogates, other encodings, trailing garbage. `loads` also rejects what
orjson accepts but two readers could understand differently: a name twice in one object, nesting over `DEPTH_MAX` levels,
and numbers that are not written as 64-bit integers. The public API has no other numbers; JSON Schema accepts ``1.0`` as
an integer, this API does not.
"""

from __future__ import annotations

__all__ = [
    "BODY_BYTES_MAX",
    "BODY_SECONDS_MAX",
    "DEPTH_MAX",
    "IDEMPOTENCY_KEY",
    "NotAnInteger",
    "NotStrict",
    "ask_for_body",
    "idempotency_key",
    "loads",
    "parse_body",
    "read_body",
    "read_bytes",
]

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import orjson
from aiohttp import HttpVersion11, hdrs, web

from app.web.responses.problems import ProblemError, invalid_input
from bus.contracts.schemas import explain
from bus.errors import SchemaViolation

BODY_BYTES_MAX = 64 * 1024
BODY_SECONDS_MAX = 10.0
DEPTH_MAX = 32

_INTEGER_MAX = 2**63 - 1
_VIOLATIONS_MAX = 20

IDEMPOTENCY_KEY = "Idempotency-Key"

# The usual spellings are accepted without parsing.
_USUAL_TYPES = frozenset({"application/json", "application/json; charset=utf-8", "application/json;charset=utf-8"})
_JSON_TYPE = re.compile(r'application/json(?:[ \t]*;[ \t]*charset=(?:utf-8|"utf-8"))?', re.ASCII | re.IGNORECASE)
_BARE_KEY = re.compile(r"[!#-~][!-~]{0,254}", re.ASCII)
_QUOTED_KEY = re.compile(r'"((?:[!#-\[\]-~]|\\["\\])+)"', re.ASCII)

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
    body = await read_bytes(request)
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


async def read_bytes(request: web.Request) -> bytes:
    """
    Return the body of *request*.

    Raises:
        ProblemError: 400, it is incomplete; 408, it does not arrive; 413, it is larger than `BODY_BYTES_MAX`.
    """
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


class NotStrict(Exception):
    """The body is not JSON, or two readers could understand it differently."""

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(detail)


class NotAnInteger(Exception):
    """The body has numbers that are not 64-bit integers."""

    def __init__(self, violations: tuple[SchemaViolation, ...]) -> None:
        self.violations = violations
        super().__init__(f"{len(violations)} numbers are not integers of 64 bits")


class _InvalidNumber(Exception):
    """Ends the fast check; a second, slower pass then finds every invalid number."""


def loads(body: bytes) -> Any:
    """
    Return the value of *body*: dicts, lists, strings, integers, booleans and None.

    Raises:
        NotStrict: The body is not strict JSON; the detail gives the reason and repeats nothing of the body.
        NotAnInteger: A number in it is not a 64-bit integer; the violations point at each, up to 20.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotStrict(
            f"The body is not JSON in UTF-8: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    try:
        members = _check_depth_and_size(value if type(value) is dict else [value], 1 if type(value) is dict else 0)
    except _InvalidNumber:
        raise NotAnInteger(tuple(_invalid_numbers(value))[:_VIOLATIONS_MAX]) from None
    # Each member has one colon, also a duplicate that orjson dropped. As many colons as members: none was dropped.
    if members != body.count(b":"):
        _check_names(body)
    return value


def _check_depth_and_size(value: Any, depth: int) -> int:
    """Return the number of members of all objects in *value*, a dict or a list at nesting *depth*."""
    if depth > DEPTH_MAX:
        raise NotStrict(f"The body is nested over {DEPTH_MAX} levels deep.")
    if type(value) is dict:
        members, children = len(value), value.values()
    else:
        members, children = 0, value
    for child in children:
        kind = type(child)
        if kind is str:
            continue
        if kind is dict or kind is list:
            members += _check_depth_and_size(child, depth + 1)
        elif kind is float or (kind is int and child > _INTEGER_MAX):
            raise _InvalidNumber
    return members


def _check_names(body: bytes) -> None:
    """Raise `NotStrict` if an object in *body* has a name twice."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) != len(pairs):
            raise NotStrict("The body has an object with the same name twice.")

    try:
        # Numbers stay text: their size does not matter here, and int() rejects very long ones.
        json.loads(body.decode(), object_pairs_hook=check, parse_int=str, parse_float=str)
    except RecursionError:  # only a member that orjson dropped can be nested so deep, so it is a duplicate
        raise NotStrict("The body has an object with the same name twice.") from None


def _invalid_numbers(value: Any, pointer: str = "", depth: int = 0) -> Iterator[SchemaViolation]:
    """Yield a violation for each number that is not a 64-bit integer, down to the nesting that a body may have."""
    if depth > DEPTH_MAX:
        return
    if type(value) is dict:
        for name, child in value.items():
            yield from _invalid_numbers(child, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}", depth + 1)
    elif type(value) is list:
        for index, child in enumerate(value):
            yield from _invalid_numbers(child, f"{pointer}/{index}", depth + 1)
    elif type(value) is float or (type(value) is int and value > _INTEGER_MAX):
        yield SchemaViolation(pointer, "must be written as an integer, of at most 64 bits")
