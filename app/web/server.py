"""
aiohttp's server, taught to say problems.

What is no HTTP at all never reaches the application: aiohttp's connection answers it itself, in plain text. The two
methods here are where it makes those answers. And most requests need not be shown the way: a path without a parameter,
written as we write it, leads straight to who answers it.
"""

from __future__ import annotations

__all__ = ["KEEP_ALIVE_SECONDS", "Runner"]

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong
from loguru import logger
from uuid_utils import uuid7

from app.web.application import STATIC_ROUTES, TELEMETRY, UNMATCHED, Answers
from app.web.handler import SERVER, Telemetry
from app.web.problems import ProblemError, phrase, respond

KEEP_ALIVE_SECONDS = 75.0


class Runner(web.AppRunner):
    """Run an application made by `build`; otherwise aiohttp's own `AppRunner`."""

    def __init__(self, app: web.Application, **kwargs: Any) -> None:
        super().__init__(app, access_log=None, **kwargs)
        self._telemetry = app[TELEMETRY]
        self._straight = app[STATIC_ROUTES]

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made, self._straight, self._telemetry)


class _Server(web.Server):
    def __init__(self, made: web.Server, straight: Mapping[tuple[str, str], Answers], telemetry: Telemetry) -> None:
        ask_the_way = made.request_handler

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            assert isinstance(request, web.Request)
            found = straight.get((request.method, request.rel_url.raw_path))
            if found is None or hdrs.EXPECT in request.headers:  # only aiohttp's router knows who answers that
                return await ask_the_way(request)
            return await found(request)

        super().__init__(answer, request_factory=made.request_factory)
        self._running = asyncio.get_running_loop()
        self._telemetry = telemetry

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._running, self._telemetry)


class _Connection(web.RequestHandler):
    __slots__ = ("_telemetry",)

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop, telemetry: Telemetry) -> None:
        # A body with a Content-Encoding is refused unread; nothing is ever inflated.
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type] # means none, says aiohttp's documentation
            auto_decompress=False,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
        )
        self._telemetry = telemetry

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what went wrong outside every handler; the connection ends with it."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        correlation = str(uuid7())
        if status >= 500:
            logger.opt(exception=exc).error("request failed", route=UNMATCHED, correlation_id=correlation)
            refused = ProblemError(status, "internal_error", "Something went wrong on our side.", closes=True)
        elif isinstance(exc, LineTooLong):
            detail = "The request line or one of the headers is too long."
            refused = ProblemError(431, "malformed_request", detail, closes=True)
        else:
            refused = ProblemError(400, "malformed_request", "This is not a valid HTTP request.", closes=True)
        return self._problem(request, refused, correlation)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send *resp*, and a problem instead of an answer that aiohttp's router gives without asking anybody."""
        if isinstance(resp, web.HTTPException):
            status = resp.status
            refused = ProblemError(status, "not_found" if status == 404 else "refused", f"{phrase(status)}.")
            resp = self._problem(request, refused, str(uuid7()))
        return await super().finish_response(request, resp, start_time)

    def _problem(self, request: web.BaseRequest, refused: ProblemError, correlation: str) -> web.Response:
        self._telemetry.http_requests.labels(request.method, UNMATCHED, str(refused.status)).inc()
        response = respond(refused, request.rel_url.raw_path, correlation)
        response.headers[hdrs.SERVER] = SERVER
        return response
