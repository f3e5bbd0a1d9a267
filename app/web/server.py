"""
aiohttp's server with problem documents for every error, and with handlers for static paths that bypass its router.

A request that is not valid HTTP never reaches the application: aiohttp's connection itself answers it, in plain text.
`_Connection` overrides the two methods that do so. `_Server` limits the number of connections. It calls the handler of a
path without a parameter directly, if the request spells the path as the route does; aiohttp's router resolves all other
requests.
"""

from __future__ import annotations

__all__ = ["CLIENT_ADDRESS", "KEEP_ALIVE_SECONDS", "RESERVED_CONNECTIONS", "Runner"]

import asyncio
import ctypes
import os
import socket
import struct
import sys
from contextlib import ExitStack, suppress
from resource import RLIMIT_NOFILE, getrlimit
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from loguru import logger
from uuid_utils import uuid7

from app.web.access.authentication import ANONYMOUS
from app.web.access.gate import Gate
from app.web.access.limits import LimitLog
from app.web.application import GATE, STATIC_HANDLERS, TELEMETRY, UNMATCHED
from app.web.handler import PROBES, SERVER, Telemetry
from app.web.responses.problems import ProblemError, phrase, problem_response

KEEP_ALIVE_SECONDS = 75.0

RESERVED_CONNECTIONS = 16
"""Connections beyond the limit on which probes are still answered."""

CLIENT_ADDRESS = "X-Fulfilment-Client-Address"
"""Header of a request that a worker passes on: the address of its client. A worker removes one that a client has sent."""

_HANDSHAKE_SECONDS = 0.05
"""How long a listener that closes waits for the end of handshakes that have begun."""

_SO_ATTACH_FILTER = 26  # socket(7); Python has no name for it
_DROP_SYN = (  # instructions (code, jump if true, jump if false, constant) of linux/filter.h; a segment begins at its TCP header
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # drop the segment
    (0x06, 0, 0, 0xFFFFFFFF),  # accept it whole
)

_LINGER_SECONDS = 1.0
_LINGER_STEP_SECONDS = 0.01
_DESCRIPTORS_KEPT = 128
_CONNECTIONS_MAX = 10_000


class Runner(web.AppRunner):
    """
    Runs an application made by `build_application`; otherwise the same as aiohttp's `AppRunner`.

    It has *connections_max* connections at once; by default what the limit of open files leaves to them. With *is_private*
    all its requests are passed on by workers (`app.web.workers`), which name the address of the client.
    """

    def __init__(
        self, app: web.Application, connections_max: int | None = None, *, is_private: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(app, access_log=None, handle_signals=False, **kwargs)
        self._is_private = is_private
        self._app_parts = app
        self._connections_max = connections_max or _connections_for(getrlimit(RLIMIT_NOFILE)[0])

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(server, self._app_parts, self._connections_max, self._is_private)

    async def drain(self, delay_seconds: float) -> None:
        """
        Ask clients to connect elsewhere, and stop listening after *delay_seconds*; return once connections can be closed.

        From now on every answer closes its connection, so clients that are busy go by themselves; readiness answers 503
        meanwhile. A client that connects in the last moment before the listener closes is refused a second later, when its
        kernel tries again. A client of a kept-alive connection may have sent a request that has not arrived yet: connections
        that are idle get a moment before `cleanup` closes them.
        """
        server = self._server
        if not isinstance(server, _Server):  # never started
            return
        server.is_draining = True
        if delay_seconds:
            await asyncio.sleep(delay_seconds)
        with ExitStack() as duplicates:  # a duplicate that stays open would keep the port, also if this is cancelled
            listening = [
                duplicates.enter_context(socket.socket(fileno=os.dup(each.fileno())))
                for site in self._sites
                for each in getattr(site._server, "sockets", ())  # none if it could not listen
            ]
            for each in listening:
                _drop_new_connections(each)
            await asyncio.sleep(_HANDSHAKE_SECONDS)
            for site in list(self._sites):
                await site.stop()
            for each in listening:
                await _accept_waiting(each, server)
        for _ in range(round(_LINGER_SECONDS / _LINGER_STEP_SECONDS)):
            if not any(connection.is_idle for connection in server.own_connections):
                break
            await asyncio.sleep(_LINGER_STEP_SECONDS)


class ConnectionLimit(Exception):
    """As many connections are open as may be; this one is for probes."""


def _connections_for(descriptors: int) -> int:
    """Return how many connections a process may have that may open *descriptors* files; the rest is for everything else."""
    kept = min(_DESCRIPTORS_KEPT, descriptors // 2)
    return max(1, min(_CONNECTIONS_MAX, descriptors - kept - RESERVED_CONNECTIONS))


def _drop_new_connections(listening: socket.socket) -> None:
    """
    Let the kernel drop the first segment of each new connection to *listening*, on Linux.

    A connection that the kernel accepts between the last `accept` and the `close` of a listener is reset, although its client
    has connected and written. With the filter there is none: handshakes that have begun end, and no other begins.
    """
    if sys.platform != "linux" or listening.family == socket.AF_UNIX:
        return
    filter = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in _DROP_SYN))
    program = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(filter))
    with suppress(OSError):  # a sandbox may refuse it; then such a connection can be reset
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


async def _accept_waiting(listening: socket.socket, server: _Server) -> None:
    """
    Serve the connections that the kernel has accepted for a listener that is closed; *listening* is its duplicate.

    Closing a listener resets the connections that wait in its queue, although their clients have connected and written.
    """
    loop = asyncio.get_running_loop()
    listening.setblocking(False)
    waiting = []
    with suppress(BlockingIOError):
        while True:
            waiting.append(listening.accept()[0])
    for connection in waiting:
        connection.setblocking(False)
        with suppress(OSError):  # the client has gone
            await loop.connect_accepted_socket(server, connection)


class _Server(web.Server):
    def __init__(self, server: web.Server, app: web.Application, connections_max: int, is_private: bool) -> None:
        resolve = server.request_handler
        static_handlers = app[STATIC_HANDLERS]

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            assert isinstance(request, web.Request)
            if is_private:
                request = request.clone(remote=request.headers.get(CLIENT_ADDRESS, ""))
            path = request.rel_url.raw_path
            if request._protocol.is_reserved and path not in PROBES:  # type: ignore[attr-defined]
                raise ConnectionLimit
            handler = static_handlers.get((request.method, path))
            if handler is None or hdrs.EXPECT in request.headers:  # only aiohttp's router calls expect handlers
                return await resolve(request)
            return await handler(request)

        super().__init__(handle, request_factory=server.request_factory)
        self.is_draining = False
        self._running = asyncio.get_running_loop()
        self.telemetry: Telemetry = app[TELEMETRY]
        self.gate: Gate = app[GATE]
        self._connections_max = connections_max
        self._log = LimitLog()

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._running)

    @property
    def own_connections(self) -> list[_Connection]:
        """The connections that are open, the oldest first."""
        return [connection for connection in self._connections if isinstance(connection, _Connection)]

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Admit a connection; at the limit close the oldest idle one, or else leave the new one to probes."""
        super().connection_made(handler, transport)
        count = len(self._connections)
        if count <= self._connections_max:
            return
        self._log.report("open connections", self._connections_max)
        idle = next((each for each in self.own_connections if each.is_idle and each is not handler), None)
        if idle is not None:
            idle.force_close()
        elif count <= self._connections_max + RESERVED_CONNECTIONS:
            assert isinstance(handler, _Connection)
            handler.is_reserved = True
        else:
            transport.abort()


class _Connection(web.RequestHandler):
    __slots__ = ("_is_half_closed", "_running", "_server", "is_reserved")

    def __init__(self, server: _Server, loop: asyncio.AbstractEventLoop) -> None:
        # A body with a Content-Encoding is rejected unread; nothing is ever decompressed.
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type] # aiohttp's documentation allows None
            auto_decompress=False,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
        )
        self._server = server
        self._running = loop
        self.is_reserved = False
        """Only probes are answered on it."""
        self._is_half_closed = False

    @property
    def is_idle(self) -> bool:
        """No request is being read or answered."""
        waiter = self._waiter
        return waiter is not None and not waiter.done()

    def eof_received(self) -> bool:  # type: ignore[override] # the transport uses the value (asyncio.Protocol)
        """
        Keep the connection open for the responses to what a client has sent before it closed its side.

        RFC 9112, section 9.6: the server answers and then closes. A response that has begun without an end, such as a
        stream of events, ends at once: nearly always the client has gone.
        """
        if not self.is_idle and self._current_request is None and not self._messages:
            # Python 3.11 begins a request's task one iteration of the loop after it has created it.
            self._running.call_soon(self._close_unless_awaited)
            return True
        return self._awaits_responses()

    def _close_unless_awaited(self) -> None:
        if not self._awaits_responses() and self.transport is not None:
            self.transport.close()

    def _awaits_responses(self) -> bool:
        """Return whether the client, which has closed its side, awaits a response; the rest of a body counts as lost."""
        current: web.BaseRequest | None = self._current_request
        if (current is None and not self._messages) or (current is not None and current.writer.output_size > 0):
            return False
        self._is_half_closed = True
        self._lingering_time = 0.0  # after a response aiohttp would wait for the rest of a body
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
        if isinstance(exc, ConnectionLimit):
            detail = "Too many connections are open."
            problem = ProblemError(503, "overloaded", detail, headers={hdrs.RETRY_AFTER: "1"}, closes=True)
        elif status >= 500:
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
        is_last = self._server.is_draining or self.is_reserved or (self._is_half_closed and not self._messages)
        if is_last and not resp.prepared:
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def _respond(self, request: web.BaseRequest, problem: ProblemError, correlation: str) -> web.Response:
        self._server.telemetry.http_requests.labels(request.method, UNMATCHED, str(problem.status)).inc()
        if problem.status < 500:
            self._server.gate.log.refused(request, problem, ANONYMOUS.name, correlation)
        response = problem_response(problem, request.rel_url.raw_path, correlation)
        response.headers[hdrs.SERVER] = SERVER
        return response
