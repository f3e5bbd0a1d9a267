"""Successful responses with a JSON body."""

from __future__ import annotations

__all__ = ["JSON", "JSON_HEADERS", "UNCACHED", "json_response"]

from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import hdrs, web

JSON = "application/json"

UNCACHED: Mapping[str, str] = {hdrs.CACHE_CONTROL: "no-store", "X-Content-Type-Options": "nosniff"}
"""Headers of every response with data: no cache keeps it, and no browser takes it for a page."""

JSON_HEADERS: Mapping[str, str] = {hdrs.CONTENT_TYPE: JSON, **UNCACHED}


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a response whose body is *value* as JSON."""
    all_headers = JSON_HEADERS if not headers else {**JSON_HEADERS, **headers}
    return web.Response(body=orjson.dumps(value), status=status, headers=all_headers)
