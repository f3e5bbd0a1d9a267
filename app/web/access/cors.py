"""
Cross-origin requests (the CORS protocol of the Fetch standard): let pages of named origins read answers.

Without such an origin there is nothing to send: a browser then keeps every answer from pages of other origins. Callers
send their key in a header and never as a cookie, so credentials are not allowed.
"""

from __future__ import annotations

__all__ = ["Cors"]

from collections.abc import Collection

from aiohttp import hdrs, web

from app.web.responses.success import UNCACHED

_EXPOSED = "ETag, Idempotency-Replayed, Location, Retry-After, X-Correlation-ID"
_ALLOWED = (
    "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, X-Correlation-ID, traceparent"
)
_MAX_AGE_SECONDS = 600


class Cors:
    """Lets pages of *origins* call this server."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    async def on_response_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Do as `add`; for aiohttp's signal of that name, which precedes a stream's first event."""
        self.add(request, response)

    def add(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers that let a page of an allowed origin read *response*, unless it has them."""
        origin = request.headers.get(hdrs.ORIGIN)
        vary = response.headers.get(hdrs.VARY, "")
        if hdrs.ORIGIN in vary:
            return
        response.headers[hdrs.VARY] = f"{vary}, {hdrs.ORIGIN}" if vary else hdrs.ORIGIN
        if origin in self._origins:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED

    def is_preflight(self, request: web.Request) -> bool:
        """Return whether *request* asks if a page of an allowed origin may send another request."""
        headers = request.headers
        return (
            request.method == hdrs.METH_OPTIONS
            and hdrs.ACCESS_CONTROL_REQUEST_METHOD in headers
            and headers.get(hdrs.ORIGIN) in self._origins
        )

    def preflight(self) -> web.Response:
        """Return the answer to such a request: which methods and headers may be sent, for ten minutes."""
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, HEAD, POST, PUT, PATCH, DELETE",
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _ALLOWED,
                hdrs.ACCESS_CONTROL_MAX_AGE: str(_MAX_AGE_SECONDS),
                **UNCACHED,
            },
        )
