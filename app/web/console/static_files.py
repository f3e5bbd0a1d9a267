"""The files that the pages load: the style sheet, the script, htmx with its extension for server-sent events, and uPlot."""

from __future__ import annotations

__all__ = ["FILES", "FOLDER", "PACKAGES", "POLICY", "SIZE_MAX", "address", "endpoints", "manifest"]

import asyncio
from functools import cache
from importlib import resources
from typing import Any

import orjson
from aiohttp import hdrs, web

from app.web.handler import Endpoint, EndpointHandler, RequestContext
from app.web.responses.packaged import PackagedFile, file_response

FOLDER = resources.files("app.web.console").joinpath("static")

PACKAGES = ("htmx", "htmx-ext-sse", "uplot")
"""Folders of files that others have written; each has a licence and a manifest with its version and hashes."""

SIZE_MAX = 300_000
"""Most bytes that a browser loads for all pages together, uncompressed."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
"""The Content-Security-Policy of every page: no script, style or connection but this server's, and none in the page."""

_HASH = "v"
_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
FILES = (
    "console.css",
    "console.js",
    "htmx/htmx.min.js",
    "htmx-ext-sse/sse.min.js",
    "uplot/uPlot.iife.min.js",
    "uplot/uPlot.min.css",
)


def endpoints() -> tuple[Endpoint, ...]:
    """Return an endpoint for each file. They need no session: the page to log in loads some of them."""
    return tuple(Endpoint(hdrs.METH_GET, f"/console/static/{name}", _file(name), is_public=True) for name in FILES)


def address(name: str) -> str:
    """Return the address of the file *name*, with its hash, so that browsers keep it."""
    return f"/console/static/{name}?{_HASH}={_read(name).hash}"


def manifest(package: str) -> dict[str, Any]:
    """Return the members of the manifest of one of `PACKAGES`: ``package``, ``version``, ``license``, ``sha256`` by file."""
    found: dict[str, Any] = orjson.loads(FOLDER.joinpath(package, "manifest.json").read_bytes())
    return found


def _file(name: str) -> EndpointHandler:
    content_type = _TYPES[name.rpartition(".")[2]]

    async def handle(request: web.Request, context: RequestContext) -> web.Response:
        file = await asyncio.to_thread(_read, name)
        return file_response(request, file, content_type, request.query.get(_HASH, ""), {"Content-Security-Policy": POLICY})

    return handle


@cache
def _read(name: str) -> PackagedFile:
    return PackagedFile.of(FOLDER.joinpath(name).read_bytes())
