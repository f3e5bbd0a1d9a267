"""The page to read and try the API: Swagger UI, served from this package and loading nothing from elsewhere."""

from __future__ import annotations

__all__ = ["POLICY", "accepts_gzip", "endpoints", "vendored_files"]

import asyncio
import gzip
import re
from functools import cache
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable

import orjson
from aiohttp import hdrs, web
from attrs import frozen

from app.web.handler import Endpoint, EndpointHandler, RequestContext
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
_UI = "ui"
_FILES = {
    "/docs": (_PAGE, "text/html; charset=utf-8"),
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
    return web.Response(status=302, headers={hdrs.LOCATION: "/docs", **UNCACHED})


def vendored_files() -> tuple[str, dict[str, str]]:
    """Return the version of the vendored Swagger UI, and the SHA-256 of each of its files by name."""
    manifest = orjson.loads(_ui().joinpath("swagger-ui/manifest.json").read_bytes())
    return manifest["version"], manifest["sha256"]


def _file(name: str, content_type: str) -> EndpointHandler:
    async def handle(request: web.Request, context: RequestContext) -> web.Response:
        file = await asyncio.to_thread(_read, name)
        is_compressed = accepts_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, ""))
        etag = f'"{file.hash}-gzip"' if is_compressed else f'"{file.hash}"'
        # The page names each file with its hash, so what is cached under that address never changes.
        is_fixed = request.query.get(_HASH) == file.hash
        headers = {
            hdrs.CACHE_CONTROL: "public, max-age=31536000, immutable" if is_fixed else "no-cache",
            hdrs.ETAG: etag,
            hdrs.VARY: hdrs.ACCEPT_ENCODING,
            "Content-Security-Policy": POLICY,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        if etag in request.headers.get(hdrs.IF_NONE_MATCH, ""):
            return web.Response(status=304, headers=headers)
        if is_compressed:
            headers[hdrs.CONTENT_ENCODING] = "gzip"
        body = file.compressed if is_compressed else file.body
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type, **headers})

    return handle


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether the header ``Accept-Encoding`` accepts gzip (RFC 9110, section 12.5.3)."""
    qualities: dict[str, bool] = {}
    for part in accept_encoding.lower().split(","):
        coding, _, parameter = part.partition(";")
        qualities[coding.strip()] = not re.fullmatch(r"[ \t]*q[ \t]*=[ \t]*0(?:\.0*)?[ \t]*", parameter)
    return qualities.get("gzip", qualities.get("*", False))


@frozen
class _File:
    body: bytes
    compressed: bytes
    hash: str


@cache
def _read(name: str) -> _File:
    """Return a file; the page with the hashes of its files. Cached at the first request: most processes never serve it."""
    body = _ui().joinpath(name).read_bytes()
    if name == _PAGE:
        for path, (other, _) in _FILES.items():
            if other != _PAGE:
                body = body.replace(f'"{path}"'.encode(), f'"{path}?{_HASH}={_read(other).hash}"'.encode())
    return _File(body, gzip.compress(body, 9, mtime=0), sha256(body).hexdigest()[:32])


def _ui() -> Traversable:
    return resources.files("app.web.spec").joinpath(_UI)
