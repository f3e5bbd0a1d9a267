"""
Pass requests on to the process that runs the modules, over its private socket, and the responses back.

That process admits the request, answers and records it; the worker only adds the address of the client. Bodies and
responses are passed on as they arrive, so a client receives each event of a stream at once.
"""

from __future__ import annotations

__all__ = ["Forwarder"]

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import (
    ClientConnectionError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    UnixConnector,
    hdrs,
    web,
)
from uuid_utils import uuid7
from yarl import URL

from app.telemetry.trace import correlation_id
from app.web.handler import SERVER
from app.web.requests.command import ask_for_body
from app.web.requests.ndjson import NDJSON
from app.web.responses.problems import X_CORRELATION_ID, ProblemError, problem_response
from app.web.server import CLIENT_ADDRESS

_OWN_HEADERS = frozenset(
    {"connection", "content-length", "date", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers about one connection (RFC 9110, section 7.6.1), or which each side of it writes itself."""

_STREAMED = frozenset({"text/event-stream", NDJSON})
"""Content types of responses that may be long, and are passed on as they arrive."""

_NOT_ADDED = (hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.USER_AGENT, hdrs.CONTENT_TYPE)


class Forwarder:
    """Passes requests on to the server at the Unix socket *path*; *before* is called for each of them."""

    def __init__(self, path: str, before: Callable[[], None]) -> None:
        self._before = before
        self._session = ClientSession(
            connector=UnixConnector(path, limit=0),
            timeout=ClientTimeout(total=None, sock_connect=5.0),
            auto_decompress=False,
            cookie_jar=DummyCookieJar(),
            skip_auto_headers=_NOT_ADDED,
        )
        self._streams: set[Any] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Return the response of the other process to *request*, which has been sent already."""
        self._before()
        headers = [(name, value) for name, value in _end_to_end(request.headers) if name.lower() != CLIENT_ADDRESS.lower()]
        headers.append((CLIENT_ADDRESS, request.remote or ""))
        body: Any = None
        expectation = request.headers.get(hdrs.EXPECT, "")
        if expectation and expectation.lower() != "100-continue":
            headers.append((hdrs.EXPECT, expectation))
        elif request.body_exists or expectation:
            await ask_for_body(request)
            body = request.content
            if request.content_length is not None:
                headers.append((hdrs.CONTENT_LENGTH, str(request.content_length)))
        try:
            answer = await self._session.request(
                request.method, URL(f"http://modules{request.rel_url.raw_path_qs}", encoded=True),
                headers=headers, data=body, allow_redirects=False,
            )  # fmt: skip
        except (UnicodeEncodeError, ValueError):
            return _problem(request, 400, "malformed_request", "A header of the request is not UTF-8.")
        except ClientConnectionError:
            if request.content.exception() is not None:
                return _problem(request, 400, "malformed_request", "The body of the request ends too early.")
            return _problem(request, 503, "unavailable", "The server is not ready. Try again later.")
        async with answer:
            return await self._pass_back(request, answer)

    async def _pass_back(self, request: web.Request, answer: Any) -> web.StreamResponse:
        headers = _end_to_end(answer.headers)
        is_stream = answer.headers.get(hdrs.CONTENT_LENGTH) is None and answer.content_type in _STREAMED
        if not is_stream:
            response = web.Response(status=answer.status, headers=headers, body=await answer.read())
            if request.method == hdrs.METH_HEAD and hdrs.CONTENT_LENGTH in answer.headers:
                response.headers[hdrs.CONTENT_LENGTH] = answer.headers[hdrs.CONTENT_LENGTH]
            return response
        response_stream = web.StreamResponse(status=answer.status, headers=headers)
        self._streams.add(answer)
        try:
            await response_stream.prepare(request)
            async for data in answer.content.iter_any():
                await response_stream.write(data)
            await response_stream.write_eof()
        except ClientConnectionError:  # the other process has ended the stream, or `close` has
            if answer.content_type == NDJSON and request.transport is not None:
                request.transport.abort()  # what has arrived must not look complete
        finally:
            self._streams.discard(answer)
        return response_stream

    def end_streams(self) -> None:
        """End the streams of events: no client would, and the worker waits for its requests before it ends."""
        for answer in list(self._streams):
            answer.close()

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._session.close()


def _end_to_end(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in _OWN_HEADERS]


def _problem(request: web.Request, status: int, code: str, detail: str) -> web.Response:
    correlation = correlation_id(request.headers.get(X_CORRELATION_ID), lambda: str(uuid7()))
    response = problem_response(ProblemError(status, code, detail), request.rel_url.raw_path, correlation)
    response.headers[hdrs.SERVER] = SERVER
    return response
