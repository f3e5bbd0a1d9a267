"""Read a body of newline-delimited JSON, line by line, without holding more of it than one block."""

from __future__ import annotations

__all__ = ["BODY_BYTES_MAX", "LINES_MAX", "LINE_BYTES_MAX", "NDJSON", "check_media_type", "read_lines"]

import asyncio
import re
from collections.abc import AsyncIterator
from functools import partial

from aiohttp import hdrs, web

from app.web.requests.command import BODY_SECONDS_MAX, ask_for_body
from app.web.responses.problems import ProblemError

LINES_MAX = 10_000
LINE_BYTES_MAX = 64 * 1024
NDJSON = "application/x-ndjson"
BODY_BYTES_MAX = 16 * 1024 * 1024

_NDJSON_TYPE = re.compile(
    r'application/(?:x-ndjson|ndjson|jsonl|x-jsonlines)(?:[ \t]*;[ \t]*charset=(?:utf-8|"utf-8"))?',
    re.ASCII | re.IGNORECASE,
)

_TOO_LARGE = partial(
    ProblemError,
    413,
    "body_too_large",
    f"The body has more than {LINES_MAX} lines or {BODY_BYTES_MAX} bytes, or a line of more than {LINE_BYTES_MAX} bytes.",
    closes=True,
)
_ENCODED = partial(
    ProblemError, 415, "unsupported_media_type", "The body must have no Content-Encoding.", closes=True
)
_NOT_NDJSON = partial(
    ProblemError,
    415,
    "unsupported_media_type",
    "Content-Type must be application/x-ndjson, in UTF-8: one JSON object a line.",
    headers={"Accept": "application/x-ndjson"},
)
_BROKEN = partial(ProblemError, 400, "malformed_request", "The body is incomplete.", closes=True)
_SLOW = partial(
    ProblemError, 408, "request_timeout", f"No part of the body arrived for {BODY_SECONDS_MAX:g} seconds.", closes=True
)


def check_media_type(request: web.Request) -> None:
    """
    Check the headers of *request*, before anything of its body is read.

    Raises:
        ProblemError: 413 for an announced length that is too large, 415 for another media type.
    """
    if hdrs.CONTENT_ENCODING in request.headers:
        raise _ENCODED()
    if not _NDJSON_TYPE.fullmatch(request.headers.get(hdrs.CONTENT_TYPE, "")):
        raise _NOT_NDJSON()
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise _TOO_LARGE()


async def read_lines(request: web.Request) -> AsyncIterator[list[tuple[int, bytes]]]:
    """
    Yield the lines of the body in blocks, as they arrive, each with its number from 1; blank lines only count.

    Raises:
        ProblemError: 400, 408 or 413; the lines before are yielded first.
    """
    rest, number, size = b"", 0, 0
    await ask_for_body(request)
    while True:
        try:
            async with asyncio.timeout(BODY_SECONDS_MAX):
                block = await request.content.readany()
        except (web.RequestPayloadError, ConnectionError):
            raise _BROKEN() from None
        except TimeoutError:
            raise _SLOW() from None
        *complete, rest = (rest + block).split(b"\n") if block else (rest, b"")
        lines: list[tuple[int, bytes]] = []
        size += len(block)
        for line in complete:
            number += 1
            if number > LINES_MAX or len(line) > LINE_BYTES_MAX:
                yield lines
                raise _TOO_LARGE()
            if line.strip():
                lines.append((number, line))
        if lines:
            yield lines
        if not block:
            return
        if size > BODY_BYTES_MAX or len(rest) > LINE_BYTES_MAX:
            raise _TOO_LARGE()
