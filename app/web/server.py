"""
aiohttp's server with problem documents for every error, and with a short cut past its router.

A request that is not valid HTTP never reaches the application: aiohttp's connection itself answers it, in plain text.
`_Connection` overrides the two methods that do so. `_Server` calls the handler of a path without a parameter directly,
if the request spells the path as the route does; aiohttp's router resolves all other requests.
"""

from __future__ import annotations

__all__ = ["KEEP_ALIVE_SECONDS", "Runner"]

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from loguru import logger
from uuid_utils import uuid7

from app.web.access.authentication import ANONYMOUS
from app.web.access.gate import Gate
from app.web.application import GATE, STATIC_HANDLERS, TELEMETRY, UNMATCHED
from app.web.handler import SERVER, HttpHandler, Telemetry
from app.web.problems import ProblemError, phrase, problem_response

KEEP_ALIVE_SECONDS = 75.0


class Runner(web.AppRunner):
    """Runs an application made by `build_application`; otherwise the same as aiohttp's `AppRunner`."""

    def __init__(self, app: web.Application, **kwargs: Any) -> None:
        super().__init__(app, access_log=None, **kwargs)
        self._telemetry = app[TELEMETRY]
        self._gate = app[GATE]
        self._static_handlers = app[STATIC_HANDLERS]

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(server, self._static_handlers, self._telemetry, self._gate)


class _Server(web.Server):
    def __init__(
        self,
        server: web.Server,
        static_handlers: Mapping[tuple[str, str], HttpHandler],
        telemetry: Telemetry,
        gate: Gate,
    ) -> None:
        resolve = server.request_handler

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            assert isinstance(request, web.Request)
            handler = static_handlers.get((request.method, request.rel_url.raw_path))
            if handler is None or hdrs.EXPECT in request.headers:  # only aiohttp's router calls expect handlers
                return await resolve(request)
            return await handler(request)

        super().__init__(handle, request_factory=server.request_factory)
        self._running = asyncio.get_running_loop()
        self._telemetry = telemetry
        self._gate = gate

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._running, self._telemetry, self._gate)


class _Connection(web.RequestHandler):
    __slots__ = ("_gate", "_is_half_closed", "_telemetry")

    def __init__(
        self, server: web.Server, loop: asyncio.AbstractEventLoop, telemetry: Telemetry, gate: Gate
    ) -> None:
        # A body with a Content-Encoding is rejected unread; nothing is ever decompressed.
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type] # aiohttp's documentation allows None
            auto_decompress=False,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
        )
        self._telemetry = telemetry
        self._gate = gate
        self._is_half_closed = False

    def eof_received(self) -> bool:  # type: ignore[override] # the transport heeds the value (asyncio.Protocol)
        """
        Keep the connection open for the responses to what a client has sent before it closed its side.

        RFC 9112, section 9.6: the server answers and then closes. A response that has begun without an end, such as a
        stream of events, ends at once: nearly always the client has gone.
        """
        current: web.BaseRequest | None = self._current_request
        if (current is None and not self._messages) or (current is not None and current.writer.output_size > 0):
            return False
        self._is_half_closed = True
        for payload in (*(payload for _, payload in self._messages), *([current.content] if current else [])):
            if not payload.is_eof():  # the rest of the body can no longer arrive
                payload.set_exception(ConnectionResetError("the client has closed the connection"))
        return True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer an error that occurred outside every handler; the connection closes after it."""
        if request.writer.output_size > 0:
            raise ConnectionError("a response has already begun")
        correlation = str(uuid7())
        if status >= 500:
            logger.opt(exception=exc).error("request failed", route=UNMATCHED, correlation_id=correlation)
            problem = ProblemError(status, "internal_error", "An internal error occurred.", closes=True)
        elif isinstance(exc, LineTooLong):
            detail = "The request line or one of the headers is too long."
            problem = ProblemError(431, "malformed_request", detail, closes=True)
        elif isinstance(exc, BadHttpMessage) and "Too many" in str(exc):  # aiohttp has no class of its own for it
            problem = ProblemError(431, "malformed_request", "The request has too many headers.", closes=True)
        else:
            problem = ProblemError(400, "malformed_request", "This is not a valid HTTP request.", closes=True)
        return self._respond(request, problem, correlation)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send *resp*, or a problem document in its place if aiohttp's router made it without a handler."""
        if isinstance(resp, web.HTTPException):
            status = resp.status
            problem = ProblemError(status, "not_found" if status == 404 else "refused", f"{phrase(status)}.")
            resp = self._respond(request, problem, str(uuid7()))
        if self._is_half_closed and not self._messages:
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def _respond(self, request: web.BaseRequest, problem: ProblemError, correlation: str) -> web.Response:
        self._telemetry.http_requests.labels(request.method, UNMATCHED, str(problem.status)).inc()
        if problem.status < 500:
            self._gate.log.refused(request, problem, ANONYMOUS.name, correlation)
        response = problem_response(problem, request.rel_url.raw_path, correlation)
        response.headers[hdrs.SERVER] = SERVER
        return response
