"""A request that this process makes to itself: no connection carries it."""

from __future__ import annotations

__all__ = ["local_request"]

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from yarl import URL

from app.web.requests.command import BODY_BYTES_MAX

_BUFFER_BYTES = 2**16


class _NoConnection:
    """What a request asks about its connection, where there is none."""

    transport = None
    ssl_context = None
    peername = None
    sockname = None


def local_request(method: str, url: URL, headers: Mapping[str, str], body: bytes) -> web.Request:
    """Return the request with these parts; *url* is relative, and *body* has arrived completely."""
    loop = asyncio.get_running_loop()
    # A response copies headers into the dictionary that a request has, too.
    given: Any = web.StreamResponse(headers={**headers, **({"Content-Length": str(len(body))} if body else {})}).headers
    raw = tuple((name.encode(), value.encode()) for name, value in given.items())
    message = RawRequestMessage(method, str(url), HttpVersion11, given, raw, False, None, False, False, url)
    content = EMPTY_PAYLOAD  # a request with an empty stream would have a body, which needs a content type
    if body:
        content = StreamReader(BaseProtocol(loop), _BUFFER_BYTES, loop=loop)
        content.feed_data(body)
        content.feed_eof()
    connection: Any = _NoConnection()
    task: Any = asyncio.current_task()
    writer: Any = None
    return web.Request(message, content, connection, writer, task, loop, client_max_size=BODY_BYTES_MAX)
