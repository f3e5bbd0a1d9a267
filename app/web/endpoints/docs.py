"""The page to read and try the API: Swagger UI, served from this package and loading nothing from elsewhere."""

from __future__ import annotations

__all__ = ["POLICY", "endpoints", "vendored_files"]

import asyncio
from functools import cache
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable

import orjson
from aiohttp import hdrs, web

from app.web.handler import Endpoint, EndpointHandler, RequestContext

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

_STATIC = "static"
_FILES = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs/swagger-ui.css": ("swagger-ui/swagger-ui.css", "text/css; charset=utf-8"),
    "/docs/swagger-ui-bundle.js": ("swagger-ui/swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
}


def endpoints() -> tuple[Endpoint, ...]:
    """Return the page and its files. They require no API key: a browser that follows a link cannot send one."""
    return (
        Endpoint(hdrs.METH_GET, "/", _redirect_to_page, is_public=True),
        *(
            Endpoint(hdrs.METH_GET, path, _file(name, content_type), is_public=True)
            for path, (name, content_type) in _FILES.items()
        ),
    )


async def _redirect_to_page(request: web.Request, context: RequestContext) -> web.Response:
    return web.Response(status=302, headers={hdrs.LOCATION: "/docs"})


def vendored_files() -> tuple[str, dict[str, str]]:
    """Return the version of the vendored Swagger UI, and the SHA-256 of each of its files by name."""
    manifest = orjson.loads(_static().joinpath("swagger-ui/manifest.json").read_bytes())
    return manifest["version"], manifest["sha256"]


def _file(name: str, content_type: str) -> EndpointHandler:
    async def handle(request: web.Request, context: RequestContext) -> web.Response:
        body, etag = await asyncio.to_thread(_read, name)
        headers = {
            hdrs.CACHE_CONTROL: "no-cache",
            hdrs.ETAG: etag,
            "Content-Security-Policy": POLICY,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        if etag in request.headers.get(hdrs.IF_NONE_MATCH, ""):
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type, **headers})

    return handle


@cache
def _read(name: str) -> tuple[bytes, str]:
    """Return a file and its entity tag. Cached at the first request: most processes never serve the page."""
    body = _static().joinpath(name).read_bytes()
    return body, f'"{sha256(body).hexdigest()[:32]}"'


def _static() -> Traversable:
    return resources.files("app.web").joinpath(_STATIC)
