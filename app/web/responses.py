"""Successful responses with a JSON body."""

from __future__ import annotations

__all__ = ["JSON", "json_response"]

from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import hdrs, web

JSON = "application/json"


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a response whose body is *value* as JSON."""
    all_headers: dict[str, str] = {hdrs.CONTENT_TYPE: JSON}
    if headers:
        all_headers.update(headers)
    return web.Response(body=orjson.dumps(value), status=status, headers=all_headers)
