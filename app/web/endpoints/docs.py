"""The page to read and try the API: Swagger UI, served from this package and loading nothing from elsewhere."""

from __future__ import annotations

__all__ = ["POLICY", "endpoints", "vendored_files"]

import asyncio
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

import orjson
from aiohttp import hdrs, web

from app.web.handler import Endpoint, EndpointHandler, RequestContext
from app.web.responses.packaged import PackagedFile, file_response
from app.web.responses.success import UNCACHED

# Swagger UI uses images in data: URLs and style attributes. Scripts come from files only.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "style-src-attr 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

_HASH = "v"
_PAGE = "docs.html"
_START = "start.html"
_HTML = "text/html; charset=utf-8"
_UI = "ui"
_FILES = {
    "/docs": (_PAGE, _HTML),
    "/docs/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/docs/start.css": ("start.css", "text/css; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs/swagger-ui.css": ("swagger-ui/swagger-ui.css.gz", "text/css; charset=utf-8"),
    "/docs/swagger-ui-bundle.js": ("swagger-ui/swagger-ui-bundle.js.gz", "text/javascript; charset=utf-8"),
}


def endpoints() -> tuple[Endpoint, ...]:
    """Return the page and its files. They require no API key: a browser that follows a link cannot send one."""
    return (
        Endpoint(hdrs.METH_GET, "/", _start, is_public=True),
        *(
            Endpoint(hdrs.METH_GET, path, _file(name, content_type), is_public=True)
            for path, (name, content_type) in _FILES.items()
        ),
    )


async def _start(request: web.Request, context: RequestContext) -> web.Response:
    """Show a browser what there is; redirect every other client to the documentation."""
    if "text/html" in request.headers.get(hdrs.ACCEPT, ""):
        file = await asyncio.to_thread(_read, _START)
        headers = {hdrs.CONTENT_TYPE: _HTML, hdrs.VARY: hdrs.ACCEPT, "Content-Security-Policy": POLICY, **UNCACHED}
        return web.Response(body=file.body, headers=headers)
    return web.Response(status=302, headers={hdrs.LOCATION: "/docs", hdrs.VARY: hdrs.ACCEPT, **UNCACHED})


def vendored_files() -> tuple[str, dict[str, str]]:
    """Return the version of the vendored Swagger UI, and the SHA-256 of each of its files by name; large ones are stored compressed."""
    manifest = orjson.loads(_ui().joinpath("swagger-ui/manifest.json").read_bytes())
    return manifest["version"], manifest["sha256"]


def _file(name: str, content_type: str) -> EndpointHandler:
    async def handle(request: web.Request, context: RequestContext) -> web.Response:
        file = await asyncio.to_thread(_read, name)
        return file_response(request, file, content_type, request.query.get(_HASH, ""), {"Content-Security-Policy": POLICY})

    return handle


@cache
def _read(name: str) -> PackagedFile:
    """Return a file; the page with the hashes of its files. Cached at the first request: most processes never serve it."""
    body = _ui().joinpath(name).read_bytes()
    if name.endswith(".gz"):
        return PackagedFile.of_compressed(body)
    if name in (_PAGE, _START):
        for path, (other, _) in _FILES.items():
            if other != _PAGE:
                body = body.replace(f'"{path}"'.encode(), f'"{path}?{_HASH}={_read(other).hash}"'.encode())
    return PackagedFile.of(body)


def _ui() -> Traversable:
    return resources.files("app.web.spec").joinpath(_UI)
